-- Asks for leave to have SaladCloud move an instance to another node: at most a tenth of a group an hour, at least one.
-- ARGV: 1 group, 2 machine, 3 instance, 4 a nonce, 5 the group's size if known (0 = by its workers),
--       6 entry for the history (JSON object that is not empty), 7 a worker counts if heard of within (s), 8 how many entries of the history are kept
-- Returns {granted ('1' | '0'), moves in the last hour, how many are allowed}
-- Invariant: whoever asks, all moves of a group count together. A granted one is in the group's history.
P = 'kelpie:g:' .. ARGV[1] .. ':'
local key, machine = P .. 'moves', ARGV[2]
redis.call('ZREMRANGEBYSCORE', key, '-inf', ts(now - 3600))
local used = redis.call('ZCARD', key)
local size = math.max(num(ARGV[5]), redis.call('ZCOUNT', P .. 'workers', ts(now - num(ARGV[7])), '+inf'))
local allowed = math.max(1, math.floor(size / 10))
if used >= allowed then return {'0', used, allowed} end
redis.call('ZADD', key, ts(now), ts(now) .. ' ' .. machine .. ' ' .. ARGV[3] .. ' ' .. ARGV[4])
redis.call('EXPIRE', key, 3600)
redis.call('ZREM', P .. 'streaks', machine)
redis.call('LPUSH', P .. 'decisions', '{"at":"' .. ts(now) .. '","until_at":"' .. ts(now) .. '","count":1,"same":"",' ..
  string.sub(ARGV[6], 2))
redis.call('LTRIM', P .. 'decisions', 0, num(ARGV[8]) - 1)
return {'1', used + 1, allowed}
