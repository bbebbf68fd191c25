-- Lets a machine have jobs again that failed on it.
-- ARGV: 1 group, 2 machine, 3 a job ('' = all, and its streak begins anew), 4 limit of bans that are lifted
-- Returns {bans that were lifted, bans that are left}
-- Invariant: a ban that is not in the machine's index any more (its job has ended) is of no account.
P = 'kelpie:g:' .. ARGV[1] .. ':'
local machine, job = ARGV[2], ARGV[3]
local key, lifted = P .. 'bans:' .. machine, 0
redis.call('ZREMRANGEBYSCORE', key, '-inf', ts(now))
local ids = job ~= '' and {job} or redis.call('ZRANGEBYSCORE', key, '-inf', '+inf', 'LIMIT', 0, num(ARGV[4]))
for _, id in ipairs(ids) do
  if redis.call('ZREM', key, id) == 1 then
    redis.call('HDEL', job_key(id), 'ban:' .. machine)
    lifted = lifted + 1
  end
end
if job == '' and (redis.call('ZREM', P .. 'streaks', machine) == 1 or lifted > 0) then
  -- Jobs that failed there before may yet succeed elsewhere: they blame it no more than after a success of its own.
  redis.call('ZADD', P .. 'succeeded', ts(now), machine)
end
return {lifted, redis.call('ZCARD', key)}
