-- A replica keeps what it has claimed from poll to poll. Whoever asks for a poll now (`update ... set next_poll_at = now()`) therefore
-- takes the right to write the row from the replica that holds it, like whoever corrects it: that one lets go of it, and it is claimed
-- anew at once. The floor since the last poll holds all the same.
create function paypoll.guard_hurry() returns trigger language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    new.fence := old.fence + 1;
    new.superseded_fence := new.fence;
    return new;
end
$$;
comment on function paypoll.guard_hurry() is 'Trigger: whoever asks for a poll now has the replica that holds the transaction let go of it.';

create trigger guard_hurry before update of next_poll_at on paypoll.transactions for each row
    when (old.owner <> 0 and new.fence = old.fence and new.state = old.state and new.next_poll_at is distinct from old.next_poll_at)
    execute function paypoll.guard_hurry();
