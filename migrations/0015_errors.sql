-- What goes wrong, account by account: the most frequent errors of the last hour. Only polls that met an error come into it.
--
-- On the parent alone, so that no day that is written to is locked: days that are made later have it from the start, and those that
-- begin later and are empty get it here. Until tomorrow, errors of today are looked up without it.
create index polls_errors on only paypoll.polls (provider, account, sent_at) where error is not null;

do $$
declare
    day text;
begin
    for day in
        select c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid
         where i.inhparent = 'paypoll.polls'::regclass
           and c.relname > 'polls_' || to_char(now() at time zone 'UTC', 'YYYYMMDD')
    loop
        execute format('create index %I on paypoll.%I (provider, account, sent_at) where error is not null', day || '_errors', day);
        execute format('alter index paypoll.polls_errors attach partition paypoll.%I', day || '_errors');
    end loop;
end
$$;
