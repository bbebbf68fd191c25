-- How much work a group has.
-- ARGV: 1 group
-- Returns {now, pending, delayed, running with live leases, running whose lease is over, wait of the oldest pending (s), due
--          time of the first delayed ('' = none), end of the job that ended last ('' = none), pending of priority 0, 1, ... 9}
P = 'kelpie:g:' .. ARGV[1] .. ':'
local delayed = redis.call('ZCARD', P .. 'delayed')
local running = redis.call('ZCOUNT', P .. 'running', ts(now), '+inf')
local oldest_s, by = 0, {}
for priority = 0, 9 do
  local from = priority * 100000000000
  local till = '(' .. ts(from + 100000000000)
  by[#by + 1] = redis.call('ZCOUNT', P .. 'pending', ts(from), till)
  local first = redis.call('ZRANGEBYSCORE', P .. 'pending', ts(from), till, 'WITHSCORES', 'LIMIT', 0, 1)
  if first[2] then oldest_s = math.max(oldest_s, now - (num(first[2]) - from)) end
end
local due = redis.call('ZRANGEBYSCORE', P .. 'delayed', '-inf', '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
local ended = redis.call('ZREVRANGEBYSCORE', P .. 'ended', '+inf', '-inf', 'WITHSCORES', 'LIMIT', 0, 1)
local lapsed = redis.call('ZCARD', P .. 'running') - running
local out = {ts(now), redis.call('ZCARD', P .. 'pending'), delayed, running, lapsed, ts(oldest_s), due[2] or '', ended[2] or ''}
for _, count in ipairs(by) do out[#out + 1] = count end
return out
