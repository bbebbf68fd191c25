-- A bucket of tokens: so many calls at once, then one every so often, over all processes that name the same bucket.
-- ARGV: 1 name of the bucket, 2 seconds a token, 3 how many the bucket holds, 4 longest wait that the caller accepts (s)
-- Returns how long to wait before the call (s, '0' = go now), the token being taken; '-1' when it would be longer.
local key, each_s, holds = 'kelpie:bucket:' .. ARGV[1], num(ARGV[2]), num(ARGV[3])
local full = num(redis.call('GET', key))  -- the time at which the bucket is full again
-- By a clock that has been put back since: it must not stop everybody until it has caught up.
if full > now + holds * each_s + 600 then full = 0 end
full = math.max(full, now) + each_s
local wait_s = full - now - holds * each_s
if wait_s > num(ARGV[4]) then return '-1' end
redis.call('SET', key, ts(full), 'EX', math.ceil(full - now) + 60)
return ts(math.max(0, wait_s))
