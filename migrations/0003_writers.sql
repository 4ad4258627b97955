-- The rules that hold for any writer.

create function paypoll.is_final(state text) returns boolean language sql immutable parallel safe as $$
    select state in ('succeeded', 'failed', 'cancelled', 'refunded')
$$;

-- What came with a row to authenticate its lookup is erased once nothing is left to look up.
create function paypoll.without_secrets(provider text, params jsonb) returns jsonb language sql immutable parallel safe as $$
    select case when jsonb_typeof(params) <> 'object' then params
                when provider = 'dropayment' then params - 'session'
                when provider = 'dapi' then params - 'accessToken' - 'userSecret'
                else params end
$$;

create function paypoll.admit() returns trigger language plpgsql as $$
declare
    known constant text[] := array['dropayment', 'dusupay', 'ayoconnect', 'khalti', 'dapi'];
begin
    if not new.provider = any (known) then
        raise exception 'provider % is not known to paypoll: it is one of %', quote_literal(new.provider), array_to_string(known, ', ')
              using errcode = 'check_violation', column = 'provider';
    end if;
    if length(new.reference) not between 1 and 512 then
        raise exception 'reference has % characters: it must have 1 to 512', length(new.reference)
              using errcode = 'check_violation', column = 'reference';
    end if;
    if length(new.account) not between 1 and 128 then
        raise exception 'account has % characters: it must have 1 to 128', length(new.account)
              using errcode = 'check_violation', column = 'account';
    end if;
    if new.state <> 'pending' then
        raise exception 'a transaction begins as pending, not as %', quote_literal(new.state)
              using errcode = 'check_violation', column = 'state';
    end if;
    if pg_column_size(new.params) > 65536 then
        raise exception 'params has % bytes: at most 65536 are allowed', pg_column_size(new.params)
              using errcode = 'check_violation', column = 'params';
    end if;
    -- Only the daemon says more than this.
    new.provider_state := null; new.reason := null; new.action := null; new.details := null;
    new.attempts := 0; new.failures := 0; new.not_found := 0; new.fence := 0; new.phase := 0; new.gaps := 0;
    new.last_polled_at := null; new.finalized_at := null; new.owner := null; new.reopened_at := null;
    new.action_at := null; new.opened_at := null; new.phase_since := null; new.not_before := null;
    new.created_at := now(); new.updated_at := now();
    -- The daemon looks at it at once and then knows when its plan wants the first poll.
    new.next_poll_at := clock_timestamp();
    if new.initiated_at > now() + interval '5 minutes' then
        new.state := 'invalid';
        new.reason := format('initiated_at lies in the future (%s): correct it, then retry', new.initiated_at);
        new.next_poll_at := null;
        -- No calendar in use goes further; the reason keeps what was said.
        new.initiated_at := least(new.initiated_at, timestamptz '9999-01-01');
    elsif new.initiated_at < timestamptz '2000-01-01' then
        new.state := 'invalid';
        new.reason := format('initiated_at lies before the year 2000 (%s): correct it, then retry', new.initiated_at);
        new.next_poll_at := null;
        new.initiated_at := greatest(new.initiated_at, timestamptz '1970-01-01');
    end if;
    return new;
end
$$;
create trigger admit before insert on paypoll.transactions for each row execute function paypoll.admit();

-- Every write of the daemon raises the fence. A change without a raised fence is somebody else's: a callback handler's, an operator's
-- at a console.
create function paypoll.guard_state() returns trigger language plpgsql as $$
begin
    if new.fence = old.fence then
        if paypoll.is_final(old.state) then
            raise exception 'transaction % is already %: a final state changes only through paypoll.override_state(id, state, reason)', old.id, old.state
                  using errcode = 'restrict_violation', column = 'state';
        end if;
        if not (paypoll.is_final(new.state) or new.state = 'unresolved') then
            raise exception 'transaction % cannot be set from % to %: only a final state or unresolved; `paypoll retry` reopens it', old.id, old.state, new.state
                  using errcode = 'check_violation', column = 'state';
        end if;
        -- Its owner cannot write it any more. It stays the owner until it has let go, because it may have a poll under way.
        new.fence := old.fence + 1;
        insert into paypoll.transitions (transaction_id, from_state, to_state, provider_state, reason, source)
        values (new.id, old.state, new.state, new.provider_state, new.reason, 'external');
    end if;
    if old.owner is not null and new.attempts = old.attempts then
        -- Whoever writes this does not know what the owner has sent since the row was last written. The journal does.
        select old.attempts + count(*), greatest(old.last_polled_at, max(p.sent_at)) into new.attempts, new.last_polled_at
          from paypoll.polls p
         where p.transaction_id = old.id and p.sent_at > coalesce(old.last_polled_at, old.created_at - interval '1 day');
    end if;
    if new.state not in ('pending', 'action_required') then
        new.next_poll_at := null;
    end if;
    if paypoll.is_final(new.state) then
        new.finalized_at := coalesce(new.finalized_at, now());
        new.params := paypoll.without_secrets(new.provider, new.params);
    else
        new.finalized_at := null;
    end if;
    if new.state <> 'action_required' then
        new.action := null;
    end if;
    new.updated_at := now();
    return new;
end
$$;
create trigger guard_state before update on paypoll.transactions for each row
    when (old.state is distinct from new.state) execute function paypoll.guard_state();

-- Whoever corrects what is asked takes from the replica that holds the old version the right to write it. That one lets go of it with
-- its next write, and until then nobody else asks.
create function paypoll.guard_correction() returns trigger language plpgsql as $$
begin
    if new.provider is distinct from old.provider then
        raise exception 'transaction %: its provider cannot change', old.id using errcode = 'restrict_violation', column = 'provider';
    end if;
    if length(new.reference) not between 1 and 512 then
        raise exception 'reference has % characters: it must have 1 to 512', length(new.reference)
              using errcode = 'check_violation', column = 'reference';
    end if;
    if new.initiated_at <> old.initiated_at
       and new.initiated_at not between timestamptz '2000-01-01' and now() + interval '5 minutes' then
        raise exception 'initiated_at % lies in the future or before the year 2000', new.initiated_at
              using errcode = 'check_violation', column = 'initiated_at';
    end if;
    new.fence := old.fence + 1;
    new.updated_at := now();
    return new;
end
$$;
create trigger guard_correction before update of provider, account, reference, params, amount, currency, initiated_at
    on paypoll.transactions for each row
    when (old.fence = new.fence and old.state = new.state
          and (old.provider, old.account, old.reference, old.params, old.amount, old.currency, old.initiated_at)
              is distinct from (new.provider, new.account, new.reference, new.params, new.amount, new.currency, new.initiated_at))
    execute function paypoll.guard_correction();

-- next_poll_at is the daemon's; a hand that touches it may only ask for a look now, never hide a transaction.
create function paypoll.guard_next_poll() returns trigger language plpgsql as $$
begin
    new.next_poll_at := case when new.state in ('pending', 'action_required') then
        least(greatest(coalesce(new.next_poll_at, now()), now()), greatest(old.next_poll_at, now())) end;
    return new;
end
$$;
create trigger guard_next_poll before update of next_poll_at on paypoll.transactions for each row
    when (old.fence = new.fence and old.state = new.state and old.next_poll_at is distinct from new.next_poll_at)
    execute function paypoll.guard_next_poll();

-- A row that belongs to nobody who ever lived would wait for him for ever.
create function paypoll.guard_owner() returns trigger language plpgsql as $$
begin
    raise exception 'transaction %: owner is for the daemon to write', old.id using errcode = 'restrict_violation', column = 'owner';
end
$$;
create trigger guard_owner before update of owner on paypoll.transactions for each row
    when (old.fence = new.fence and old.owner is distinct from new.owner and new.owner <> 0)
    execute function paypoll.guard_owner();

-- An explicit override: the only way to change a final state. Journaled with source operator.
create function paypoll.override_state(id uuid, state text, reason text) returns void language plpgsql as $$
declare
    before paypoll.transactions;
begin
    select * into before from paypoll.transactions t where t.id = $1 for update;
    if not found then
        raise exception 'there is no transaction %', $1 using errcode = 'no_data_found';
    end if;
    if not (paypoll.is_final($2) or $2 = 'unresolved') then
        raise exception 'a transaction can be overridden to a final state or to unresolved, not to %', quote_literal($2)
              using errcode = 'check_violation';
    end if;
    if coalesce(trim($3), '') = '' then
        raise exception 'an override needs a reason' using errcode = 'check_violation';
    end if;
    if before.state = $2 then
        return;
    end if;
    update paypoll.transactions t
       set state = $2, reason = $3, finalized_at = null, fence = t.fence + 1
     where t.id = $1;
    insert into paypoll.transitions (transaction_id, from_state, to_state, provider_state, reason, source)
    values ($1, before.state, $2, before.provider_state, $3, 'operator');
end
$$;

-- A callback handler's verdict. True when it changed the state; false when the transaction already stood there, so that a callback
-- that is delivered twice does no harm. Refused, with an error, where a final state says otherwise.
create function paypoll.settle(
    provider text, account text, reference text, state text,
    provider_state text default null, reason text default null, evidence jsonb default null
) returns boolean language plpgsql as $$
declare
    before paypoll.transactions;
begin
    select * into before from paypoll.transactions t where t.provider = $1 and t.account = $2 and t.reference = $3 for update;
    if not found then
        raise exception 'there is no transaction % of %/%', quote_literal($3), $1, $2 using errcode = 'no_data_found';
    end if;
    if not (paypoll.is_final($4) or $4 = 'unresolved') then
        raise exception 'a transaction settles as succeeded, failed, cancelled, refunded or unresolved, not as %', quote_literal($4)
              using errcode = 'check_violation';
    end if;
    if before.state = $4 then
        return false;
    end if;
    if paypoll.is_final(before.state) then
        raise exception 'transaction % is already %: a final state changes only through paypoll.override_state(id, state, reason)', before.id, before.state
              using errcode = 'restrict_violation';
    end if;
    update paypoll.transactions t
       set state = $4, provider_state = coalesce($5, t.provider_state), reason = $6,
           fence = t.fence + 1
     where t.id = before.id;
    insert into paypoll.transitions (transaction_id, from_state, to_state, provider_state, reason, source, evidence)
    values (before.id, before.state, $4, coalesce($5, before.provider_state), $6, 'external', $7);
    return true;
end
$$;
