-- The journal: one row for every poll that was sent, whatever came of it. Partitioned by day (UTC) of sending.

create table paypoll.polls (
    transaction_id uuid        not null,
    provider       text        not null,
    account        text        not null,
    due_at         timestamptz not null,
    sent_at        timestamptz not null,
    latency_ms     integer,                              -- null: nothing came back
    http_status    smallint,                             -- null: nothing came back
    outcome        text        not null,
    error          text                                  -- null: nothing was wrong
) partition by range (sent_at);

create index polls_transaction on paypoll.polls (transaction_id, sent_at);

-- Makes the partitions for the days from `first` to `last`. Safe to call from several replicas at once, and beside whoever reads or
-- writes: a table that is attached waits for none of them, one that is made as a partition would wait for all and keep all waiting.
create function paypoll.make_journal(first date, last date) returns void language plpgsql as $$
declare
    day date;
begin
    perform pg_advisory_xact_lock(hashtext('paypoll.journal'));
    for day in select generate_series($1, $2, interval '1 day')::date loop
        if to_regclass(format('paypoll.polls_%s', to_char(day, 'YYYYMMDD'))) is null then
            execute format('create table paypoll.polls_%s (like paypoll.polls including all)', to_char(day, 'YYYYMMDD'));
            execute format('alter table paypoll.polls attach partition paypoll.polls_%s for values from (%L) to (%L)',
                           to_char(day, 'YYYYMMDD'), day::timestamp at time zone 'UTC', (day + 1)::timestamp at time zone 'UTC');
        end if;
    end loop;
end
$$;

-- Drops the partitions of the days before `first`; returns how many. Errors when somebody has read the journal for long and still does:
-- while a drop waits for him, nobody can write to the journal.
create function paypoll.prune_journal(first date) returns integer language plpgsql as $$
declare
    old text;
    dropped integer := 0;
begin
    perform pg_advisory_xact_lock(hashtext('paypoll.journal'));
    for old in
        select c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid
         where i.inhparent = 'paypoll.polls'::regclass and c.relname < 'polls_' || to_char($1, 'YYYYMMDD')
    loop
        execute format('drop table paypoll.%I', old);
        dropped := dropped + 1;
    end loop;
    return dropped;
end
$$;

select paypoll.make_journal((now() at time zone 'UTC')::date - 1, (now() at time zone 'UTC')::date + 7);
