-- The rules for whoever writes a transaction, once more and without their gaps: every UPDATE is checked like an INSERT, whatever else
-- it changes; the daemon's columns are the daemon's; what is final stays as it is; every value has a bound.
--
-- A write is the daemon's when its fence is exactly one above the old one, and anybody's otherwise. The daemon of the version before
-- writes one thing without raising the fence, and guard_anybody() lets that pass: letting go of a transaction, with the polls that
-- its row did not know yet.

alter table paypoll.transactions add column superseded_fence bigint;  -- null: nobody but its owners ever changed it
comment on column paypoll.transactions.superseded_fence is
    'The fence that the last change by somebody else than the owner raised it to. While it equals fence, the owner''s claim is void: it may only let go.';

-- An identifier that a row has given up, by a correction or by being deleted. The floor between two polls belongs to provider, account and
-- reference: whatever row takes the reference next may not be asked about earlier than the old row might have been.
create table paypoll.vacated (
    provider     text        not null,
    account      text        not null,
    reference    text        not null,
    polled_until timestamptz not null,
    primary key (provider, account, reference)
);
comment on table paypoll.vacated is
    'References that a transaction has given up (corrected or deleted) within the last two days, after they were polled.';
comment on column paypoll.vacated.provider is 'As in transactions.';
comment on column paypoll.vacated.account is 'As in transactions.';
comment on column paypoll.vacated.reference is 'The reference that was given up.';
comment on column paypoll.vacated.polled_until is
    'No poll about it is later than this: the last one that is known, or the time until which a replica that held it might send one.';
create index vacated_polled_until on paypoll.vacated (polled_until);

-- Until when polls about this row's reference may have been sent, or may still be sent by a replica that has not noticed the change;
-- null where none ever was.
create function paypoll.polled_until(t paypoll.transactions) returns timestamptz
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
    select case when t.owner is null then t.last_polled_at else greatest(
        t.last_polled_at,
        (select max(p.sent_at) from paypoll.polls p
          where p.transaction_id = t.id and p.sent_at > coalesce(t.last_polled_at, t.created_at - interval '1 day')),
        -- Owner 0 has let go. One that is dead may have sent a poll that nobody recorded; one that lives may send one as long as it has
        -- not noticed, and without its lease it sends none.
        case when t.owner <> 0 then
            clock_timestamp() + coalesce((select r.lease from paypoll.replicas r where r.id = t.owner), interval '0') end) end
$$;
comment on function paypoll.polled_until(paypoll.transactions) is
    'Until when polls about the row''s reference may have been sent, or may still be sent by the replica that holds it; null: never polled.';

-- Notes that a row gives its reference up. Floors are minutes: what is older than two days is forgotten, a little with each note.
create function paypoll.vacate(t paypoll.transactions) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    until constant timestamptz := paypoll.polled_until(t);
begin
    delete from paypoll.vacated
     where (provider, account, reference) in (
           select v.provider, v.account, v.reference from paypoll.vacated v
            where v.polled_until < clock_timestamp() - interval '2 days' order by v.polled_until limit 10 for update skip locked);
    if until > clock_timestamp() - interval '2 days' then
        insert into paypoll.vacated as v (provider, account, reference, polled_until) values (t.provider, t.account, t.reference, until)
            on conflict on constraint vacated_pkey do update set polled_until = greatest(v.polled_until, excluded.polled_until);
    end if;
end
$$;
comment on function paypoll.vacate(paypoll.transactions) is 'Notes in paypoll.vacated that a row gives its reference up.';

-- Until when this reference may have been polled under another row. A row that still has it, as far as this statement sees, is about to
-- give it up: else the unique constraint will say no.
create function paypoll.polled_elsewhere(provider text, account text, reference text) returns timestamptz
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
begin
    return greatest(
        (select v.polled_until from paypoll.vacated v where v.provider = $1 and v.account = $2 and v.reference = $3),
        (select paypoll.polled_until(t) from paypoll.transactions t where t.provider = $1 and t.account = $2 and t.reference = $3));
end
$$;
comment on function paypoll.polled_elsewhere(text, text, text) is
    'Until when this reference may have been polled under a row that has given it up, or is about to; null: never.';

-- What is wrong with what a feeder says, or null. The sentence begins with the column's name. Sizes are those of the text: params that
-- are kept compressed are not smaller for that.
create function paypoll.fault(reference text, account text, params jsonb, amount numeric, currency text) returns text
language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp as $$
begin
    return case
        when reference is null then 'reference is null: it must have 1 to 512 characters'
        when length(reference) not between 1 and 512 then
            format('reference has %s characters: it must have 1 to 512', length(reference))
        when account is null then 'account is null: it must have 1 to 128 characters'
        when length(account) not between 1 and 128 then format('account has %s characters: it must have 1 to 128', length(account))
        when params is null then 'params is null: it must be a JSON object, at least {}'
        when octet_length(params::text) > 65536 then
            format('params has %s bytes: at most 65536 are allowed', octet_length(params::text))
        when amount < 0 then format('amount %s is below zero', left(amount::text, 40))
        when amount in ('NaN', 'Infinity') then format('amount is %s: it must be a number', amount)
        when amount >= 1e18 then
            format('amount has %s digits before the point: at most 18 are allowed', length(trunc(amount)::text))
        when min_scale(amount) > 10 then
            format('amount has %s digits behind the point: at most 10 are allowed', min_scale(amount))
        when currency !~ '^[A-Za-z]{3}$' then
            format('currency %s has %s characters: it must be three letters, like USD', quote_literal(left(currency, 20)), length(currency))
    end;
end
$$;
comment on function paypoll.fault(text, text, jsonb, numeric, text) is
    'What is wrong with a transaction''s reference, account, params, amount or currency, in one sentence; null: nothing.';

-- From 0009. Every value has a bound now, nulls are named by us (the server's own error would show the whole row, params too), and a
-- reference that another row has given up keeps its floor.
create or replace function paypoll.admit() returns trigger language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    fault    constant text := paypoll.fault(new.reference, new.account, new.params, new.amount, new.currency);
    is_known boolean;
    is_used  boolean;
begin
    select exists (select from paypoll.providers p where p.name = new.provider),
           exists (select from paypoll.vacated v
                    where v.provider = new.provider and v.account = new.account and v.reference = new.reference)
           or exists (select from paypoll.transactions t
                       where t.provider = new.provider and t.account = new.account and t.reference = new.reference)
      into is_known, is_used;
    if not is_known then
        raise exception 'provider % is not known to paypoll: it is one of %', coalesce(quote_literal(left(new.provider, 64)), 'null'),
                        (select string_agg(p.name, ', ' order by p.registered_at, p.ctid) from paypoll.providers p)
              using errcode = 'check_violation', column = 'provider';
    end if;
    if fault is not null then
        raise exception '%', fault using errcode = 'check_violation', column = split_part(fault, ' ', 1);
    end if;
    if new.state is distinct from 'pending' then
        raise exception 'a transaction begins as pending, not as %', coalesce(quote_literal(left(new.state, 40)), 'null')
              using errcode = 'check_violation', column = 'state';
    end if;
    if new.id is null or new.initiated_at is null then
        raise exception '% is null: leave the column out, or give it a value', case when new.id is null then 'id' else 'initiated_at' end
              using errcode = 'check_violation', column = case when new.id is null then 'id' else 'initiated_at' end;
    end if;
    new.currency := upper(new.currency collate "C");
    if scale(new.amount) > 10 then
        new.amount := trim_scale(new.amount);
    end if;
    -- Only the daemon says more than this.
    new.provider_state := null; new.reason := null; new.action := null; new.details := null;
    new.attempts := 0; new.failures := 0; new.not_found := 0; new.fence := 0; new.phase := 0; new.gaps := 0;
    new.finalized_at := null; new.owner := null; new.reopened_at := null; new.superseded_fence := null;
    new.action_at := null; new.opened_at := null; new.phase_since := null; new.not_before := null;
    new.last_polled_at := case when is_used then paypoll.polled_elsewhere(new.provider, new.account, new.reference) end;
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

-- What anybody writes who is not the daemon. Its triggers run in the order of their names, and this one must be the first: those after
-- it raise the fence.
--
-- Without a raised fence a daemon lets go of what it may no longer write. A living owner may only when somebody else has changed the
-- row since it was claimed: what is done in its name otherwise is undone, because it may have a poll under way.
create function paypoll.guard_anybody() returns trigger language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    more  constant integer := coalesce(new.attempts - old.attempts, -1);
    alien text;
begin
    -- What was sent stands in the journal, and the last poll does not become an earlier one.
    if more > 0 and more > (select count(*) from (select from paypoll.polls p where p.transaction_id = old.id limit more) c) or more < 0 then
        alien := 'attempts';
    end if;
    if new.last_polled_at is distinct from old.last_polled_at
       and (coalesce(new.last_polled_at, '-infinity') < coalesce(old.last_polled_at, '-infinity')
            or not exists (select from paypoll.polls p where p.transaction_id = old.id and p.sent_at = new.last_polled_at)) then
        alien := concat_ws(', ', alien, 'last_polled_at');
    end if;
    alien := concat_ws(', ', alien,
        case when new.id is distinct from old.id then 'id' end,
        case when new.fence is distinct from old.fence then 'fence' end,
        case when new.superseded_fence is distinct from old.superseded_fence then 'superseded_fence' end,
        case when new.owner is distinct from old.owner and new.owner <> 0 then 'owner' end,
        case when new.failures is distinct from old.failures then 'failures' end,
        case when new.not_found is distinct from old.not_found then 'not_found' end,
        case when new.action is distinct from old.action then 'action' end,
        case when new.details is distinct from old.details then 'details' end,
        case when new.finalized_at is distinct from old.finalized_at and new.state is not distinct from old.state then 'finalized_at' end,
        case when new.created_at is null or new.created_at > old.created_at or new.created_at < timestamptz '1970-01-01 00:00Z'
             then 'created_at' end,
        case when new.reopened_at is distinct from old.reopened_at then 'reopened_at' end,
        case when new.action_at is distinct from old.action_at then 'action_at' end,
        case when new.not_before is distinct from old.not_before then 'not_before' end,
        case when new.opened_at is distinct from old.opened_at then 'opened_at' end,
        case when new.phase is distinct from old.phase then 'phase' end,
        case when new.phase_since is distinct from old.phase_since then 'phase_since' end,
        case when new.gaps is distinct from old.gaps then 'gaps' end);
    if alien <> '' then
        raise exception 'transaction %: only the daemon writes %; where a whole row was written back, it has changed since it was read: write only what you mean to change',
                        old.id, alien
              using errcode = 'restrict_violation', column = split_part(alien, ',', 1);
    end if;
    if length(new.provider_state) > 256 and new.provider_state is distinct from old.provider_state then
        raise exception 'provider_state has % characters: at most 256 are allowed', length(new.provider_state)
              using errcode = 'check_violation', column = 'provider_state';
    end if;
    if length(new.reason) > 2000 and new.reason is distinct from old.reason then
        raise exception 'reason has % characters: at most 2000 are allowed', length(new.reason)
              using errcode = 'check_violation', column = 'reason';
    end if;
    if new.owner is distinct from old.owner then
        if old.superseded_fence is distinct from old.fence and exists (select from paypoll.replicas r where r.id = old.owner) then
            new.owner := old.owner;
        elsif new.owner is null and old.next_poll_at is not null then
            -- Whoever claims it next reads in the journal what its owner has sent.
            new.owner := 0;
        end if;
    end if;
    -- A hand that touches it may only ask for a look now, never hide a transaction.
    if new.next_poll_at is distinct from old.next_poll_at then
        new.next_poll_at := case when old.state in ('pending', 'action_required') then
            least(greatest(coalesce(new.next_poll_at, now()), now()), greatest(old.next_poll_at, now())) end;
    end if;
    new.updated_at := greatest(least(coalesce(new.updated_at, now()), now()), timestamptz '1970-01-01 00:00Z');
    return new;
end
$$;
comment on function paypoll.guard_anybody() is 'Trigger: what may be written without being the daemon.';

-- From 0003, where a change of state or a raised fence in the same UPDATE kept it from looking, and where accounts, params and
-- amounts were not looked at.
--
-- Whoever corrects what is asked takes from the replica that holds the old version the right to write it. That one lets go of it with
-- its next write, and until then nobody else asks.
create or replace function paypoll.guard_correction() returns trigger language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    -- What was there before a bound was, stays.
    fault constant text := paypoll.fault(
        case when new.reference is distinct from old.reference then new.reference else '-' end,
        case when new.account is distinct from old.account then new.account else '-' end,
        case when new.params is distinct from old.params then new.params else '{}' end,
        case when new.amount is distinct from old.amount then new.amount end,
        case when new.currency is distinct from old.currency then new.currency end);
    elsewhere timestamptz;
begin
    if new.provider is distinct from old.provider then
        raise exception 'transaction %: its provider cannot change', old.id using errcode = 'restrict_violation', column = 'provider';
    end if;
    if old.state in ('succeeded', 'failed', 'cancelled', 'refunded') then
        raise exception 'transaction % is already %: what was asked about cannot be corrected any more', old.id, old.state
              using errcode = 'restrict_violation';
    end if;
    if fault is not null then
        raise exception '%', fault using errcode = 'check_violation', column = split_part(fault, ' ', 1);
    end if;
    if new.initiated_at is distinct from old.initiated_at
       and (new.initiated_at is null or new.initiated_at not between timestamptz '2000-01-01' and now() + interval '5 minutes') then
        raise exception 'initiated_at % lies in the future or before the year 2000', coalesce(new.initiated_at::text, 'null')
              using errcode = 'check_violation', column = 'initiated_at';
    end if;
    if new.currency is distinct from old.currency then
        new.currency := upper(new.currency collate "C");
    end if;
    if scale(new.amount) > 10 and new.amount is distinct from old.amount then
        new.amount := trim_scale(new.amount);
    end if;
    if (new.account, new.reference) is distinct from (old.account, old.reference) then
        perform paypoll.vacate(old);
        elsewhere := paypoll.polled_elsewhere(new.provider, new.account, new.reference);
        if elsewhere > coalesce(new.last_polled_at, '-infinity') then
            -- The row's last poll becomes a later one than its own: those that only the journal knows are counted before.
            select new.attempts + count(*), elsewhere into new.attempts, new.last_polled_at
              from paypoll.polls p
             where old.owner is not null and p.transaction_id = old.id and p.sent_at <= elsewhere
               and p.sent_at > coalesce(old.last_polled_at, old.created_at - interval '1 day');
        end if;
    end if;
    if new.fence = old.fence and new.state is not distinct from old.state then
        new.fence := old.fence + 1;
    end if;
    new.superseded_fence := new.fence;
    new.updated_at := now();
    return new;
end
$$;

-- The daemon's role cannot change a final state either. override_state says whose it changes, in a setting that anybody could set; but
-- only inside it is the current user its owner.
create function paypoll.guard_final() returns trigger language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    if current_setting('paypoll.override', true) is distinct from old.id::text
       or current_user is distinct from (select r.rolname from pg_proc p join pg_roles r on r.oid = p.proowner
                                          where p.oid = 'paypoll.override_state(uuid,text,text)'::regprocedure) then
        raise exception 'transaction % is already %: a final state changes only through paypoll.override_state(id, state, reason)', old.id, old.state
              using errcode = 'restrict_violation', column = 'state';
    end if;
    return new;
end
$$;
comment on function paypoll.guard_final() is 'Trigger: a final state changes only through paypoll.override_state.';

-- From 0003 and 0006. A parked transaction keeps its action now: a redirect or an open question is not lost when a window ends. A null
-- is refused by us. A change of final states is refused before, by guard_final.
--
-- Every write of the daemon raises the fence. A change without a raised fence is somebody else's: a callback handler's, an operator's
-- at a console.
create or replace function paypoll.guard_state() returns trigger language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    becomes_final constant boolean := coalesce(new.state in ('succeeded', 'failed', 'cancelled', 'refunded'), false);
begin
    if new.fence = old.fence then
        if not becomes_final and new.state is distinct from 'unresolved' then
            raise exception 'transaction % cannot be set from % to %: only a final state or unresolved; `paypoll retry` reopens it',
                            old.id, old.state, coalesce(left(new.state, 40), 'null')
                  using errcode = 'check_violation', column = 'state';
        end if;
        -- Its owner cannot write it any more. It stays the owner until it has let go, because it may have a poll under way.
        new.fence := old.fence + 1;
        new.superseded_fence := new.fence;
        insert into paypoll.transitions (transaction_id, from_state, to_state, provider_state, reason, source)
        values (new.id, old.state, new.state, new.provider_state, new.reason, 'external');
    elsif old.state in ('unresolved', 'invalid') and new.state = 'pending' then
        -- An operator has reopened it.
        new.superseded_fence := new.fence;
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
    if becomes_final then
        new.finalized_at := greatest(least(coalesce(new.finalized_at, now()), now()), timestamptz '1970-01-01 00:00Z');
        if new.params <> '{}' then
            new.params := paypoll.without_secrets(new.provider, new.params);
        end if;
    else
        new.finalized_at := null;
    end if;
    if becomes_final or new.state = 'pending' then
        new.action := null;
    end if;
    new.updated_at := now();
    return new;
end
$$;

-- A fence at the end of its range could not be raised any more, and the transaction never be claimed again. None gets there by
-- counting: it starts anew, and whoever wrote it lets go of it.
create function paypoll.keep_fence() returns trigger language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    new.fence := 1::bigint << 40;
    new.superseded_fence := new.fence;
    return new;
end
$$;
comment on function paypoll.keep_fence() is 'Trigger: a fence that was set to the end of its range starts anew.';

create function paypoll.guard_delete() returns trigger language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    perform paypoll.vacate(old);
    return old;
end
$$;
comment on function paypoll.guard_delete() is 'Trigger: the floor of a deleted transaction''s reference stays.';

drop trigger guard_correction on paypoll.transactions;
drop trigger guard_next_poll on paypoll.transactions;
drop trigger guard_owner on paypoll.transactions;
drop function paypoll.guard_next_poll();
drop function paypoll.guard_owner();

create trigger guard_anybody before update on paypoll.transactions for each row
    when (new.fence is distinct from old.fence + 1
          and (old.id, old.fence, old.superseded_fence, old.owner, old.attempts, old.last_polled_at, old.failures, old.not_found, old.action,
               old.details, old.finalized_at, old.created_at, old.updated_at, old.reopened_at, old.action_at, old.not_before, old.opened_at,
               old.phase, old.phase_since, old.gaps, old.next_poll_at, old.provider_state, old.reason)
              is distinct from
              (new.id, new.fence, new.superseded_fence, new.owner, new.attempts, new.last_polled_at, new.failures, new.not_found, new.action,
               new.details, new.finalized_at, new.created_at, new.updated_at, new.reopened_at, new.action_at, new.not_before, new.opened_at,
               new.phase, new.phase_since, new.gaps, new.next_poll_at, new.provider_state, new.reason))
    execute function paypoll.guard_anybody();
create trigger guard_correction before update of provider, account, reference, params, amount, currency, initiated_at
    on paypoll.transactions for each row
    when ((old.provider, old.account, old.reference, old.params, old.amount, old.currency, old.initiated_at)
          is distinct from (new.provider, new.account, new.reference, new.params, new.amount, new.currency, new.initiated_at))
    execute function paypoll.guard_correction();
create trigger guard_final before update on paypoll.transactions for each row
    when (old.state is distinct from new.state and old.state in ('succeeded', 'failed', 'cancelled', 'refunded'))
    execute function paypoll.guard_final();
create trigger keep_fence before update on paypoll.transactions for each row
    when (new.fence >= (1::bigint << 61)) execute function paypoll.keep_fence();
create trigger guard_delete before delete on paypoll.transactions for each row
    when (old.owner is not null or old.last_polled_at > now() - interval '2 days') execute function paypoll.guard_delete();

-- From 0003 and 0006: the reason has a bound, and what a constraint says of the row it refuses is kept back, because it says all of it,
-- params too.
create or replace function paypoll.override_state(id uuid, state text, reason text) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    before paypoll.transactions;
    words  text;
    broken text;
    about  text;
begin
    select * into before from paypoll.transactions t where t.id = $1 for update;
    if not found then
        raise exception 'there is no transaction %', $1 using errcode = 'no_data_found';
    end if;
    if $2 is null or $2 not in ('succeeded', 'failed', 'cancelled', 'refunded', 'unresolved') then
        raise exception 'a transaction can be overridden to a final state or to unresolved, not to %',
                        coalesce(quote_literal(left($2, 40)), 'null') using errcode = 'check_violation';
    end if;
    if coalesce(trim($3), '') = '' then
        raise exception 'an override needs a reason' using errcode = 'check_violation';
    end if;
    if length($3) > 2000 then
        raise exception 'reason has % characters: at most 2000 are allowed', length($3) using errcode = 'check_violation';
    end if;
    if before.state = $2 then
        return;
    end if;
    begin
        perform set_config('paypoll.override', $1::text, true);
        update paypoll.transactions t
           set state = $2, reason = $3, finalized_at = null, fence = t.fence + 1, superseded_fence = t.fence + 1
         where t.id = $1;
        perform set_config('paypoll.override', '', true);
        insert into paypoll.transitions (transaction_id, from_state, to_state, provider_state, reason, source)
        values ($1, before.state, $2, before.provider_state, $3, 'operator');
    exception when integrity_constraint_violation then
        get stacked diagnostics words = message_text, broken = constraint_name, about = column_name;
        raise exception '%', words using errcode = sqlstate, constraint = broken, column = about;
    end;
end
$$;

-- From 0003 and 0006: with bounds, and errors as in override_state.
create or replace function paypoll.settle(
    provider text, account text, reference text, state text,
    provider_state text default null, reason text default null, evidence jsonb default null
) returns boolean language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    before paypoll.transactions;
    words  text;
    broken text;
    about  text;
begin
    select * into before from paypoll.transactions t where t.provider = $1 and t.account = $2 and t.reference = $3 for update;
    if not found then
        raise exception 'there is no transaction % of %/%', quote_literal(left($3, 512)), left($1, 64), left($2, 128)
              using errcode = 'no_data_found';
    end if;
    if $4 is null or $4 not in ('succeeded', 'failed', 'cancelled', 'refunded', 'unresolved') then
        raise exception 'a transaction settles as succeeded, failed, cancelled, refunded or unresolved, not as %',
                        coalesce(quote_literal(left($4, 40)), 'null') using errcode = 'check_violation';
    end if;
    if length($5) > 256 then
        raise exception 'provider_state has % characters: at most 256 are allowed', length($5) using errcode = 'check_violation';
    end if;
    if length($6) > 2000 then
        raise exception 'reason has % characters: at most 2000 are allowed', length($6) using errcode = 'check_violation';
    end if;
    if octet_length($7::text) > 65536 then
        raise exception 'evidence has % bytes: at most 65536 are allowed', octet_length($7::text) using errcode = 'check_violation';
    end if;
    if before.state = $4 then
        return false;
    end if;
    if before.state in ('succeeded', 'failed', 'cancelled', 'refunded') then
        raise exception 'transaction % is already %: a final state changes only through paypoll.override_state(id, state, reason)', before.id, before.state
              using errcode = 'restrict_violation';
    end if;
    begin
        update paypoll.transactions t
           set state = $4, provider_state = coalesce($5, t.provider_state), reason = $6,
               fence = t.fence + 1, superseded_fence = t.fence + 1
         where t.id = before.id;
        insert into paypoll.transitions (transaction_id, from_state, to_state, provider_state, reason, source, evidence)
        values (before.id, before.state, $4, coalesce($5, before.provider_state), $6, 'external', $7);
    exception when integrity_constraint_violation then
        get stacked diagnostics words = message_text, broken = constraint_name, about = column_name;
        raise exception '%', words using errcode = sqlstate, constraint = broken, column = about;
    end;
    return true;
end
$$;

comment on column paypoll.transactions.action is
    'What payer or merchant must do, as the provider said it. Kept when polling ends without a final word; null once final or pending again.';

-- `create or replace` has kept what 0006 and 0009 revoked from the others.
revoke execute on function
    paypoll.polled_until(paypoll.transactions),
    paypoll.vacate(paypoll.transactions),
    paypoll.polled_elsewhere(text, text, text),
    paypoll.guard_anybody(),
    paypoll.guard_correction(),
    paypoll.guard_final(),
    paypoll.guard_delete(),
    paypoll.keep_fence()
from public;
