-- Shadows of PostgreSQL's own functions and operators, in a schema that every session of the database looks into first. Each counts its
-- call and then does what the original does. Those with polymorphic arguments cannot be had; there are two thousand without.
create schema evil;
create sequence evil.calls;
grant usage on schema evil to public;
grant usage on sequence evil.calls to public;
do $$
declare
    f record;
    arguments text;
begin
    for f in
        select p.proname, p.proargtypes, format_type(p.prorettype, null) as result, p.pronargs,
               (select string_agg(format_type(a.type, null), ', ' order by a.number)
                  from unnest(p.proargtypes) with ordinality as a (type, number)) as types
          from pg_proc p
         where p.pronamespace = 'pg_catalog'::regnamespace and p.prokind = 'f' and not p.proretset and p.provariadic = 0
           and not exists (select from pg_type t where t.typtype = 'p' and (t.oid = p.prorettype or t.oid = any (p.proargtypes)))
    loop
        arguments := (select string_agg('$' || n, ', ') from generate_series(1, f.pronargs) n);
        execute format('create function evil.%I(%s) returns %s language plpgsql as %L', f.proname, coalesce(f.types, ''), f.result,
                       format('begin perform pg_catalog.nextval(''evil.calls''); return pg_catalog.%I(%s); end',
                              f.proname, coalesce(arguments, '')));
    end loop;
    for f in
        select o.oprname as name, p.proname, nullif(o.oprleft, 0) as lefttype, o.oprright as righttype
          from pg_operator o join pg_proc p on p.oid = o.oprcode
         where o.oprnamespace = 'pg_catalog'::regnamespace
           and not exists (select from pg_type t where t.typtype = 'p' and (t.oid in (o.oprleft, o.oprright, o.oprresult)))
           and p.pronamespace = 'pg_catalog'::regnamespace and p.prokind = 'f' and not p.proretset and p.provariadic = 0
    loop
        execute format('create operator evil.%s (%s rightarg = %s, function = evil.%I)', f.name,
                       'leftarg = ' || format_type(f.lefttype, null) || ',', format_type(f.righttype, null), f.proname);
    end loop;
end
$$;
