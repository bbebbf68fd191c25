-- Records what an attempt made durable: its newest commit.
-- ARGV: 1 id, 2 attempt, 3 nonce, 4 pointer (JSON)
-- Returns 1, or 0 when the attempt does not own the job: then nothing may follow from this commit.
local id = ARGV[1]
if not find(id) then return 0 end
if not owns(id, ARGV[2], ARGV[3]) and not take_back(id, ARGV[2], ARGV[3]) then return 0 end
local before = redis.call('HMGET', job_key(id), 'commit', 'committed_in')
if before[1] == ARGV[4] and before[2] == ARGV[2] then return 1 end  -- its answer was lost
redis.call('HSET', job_key(id), 'commit', ARGV[4], 'committed_in', ARGV[2], 'committed_at', ts(now))
redis.call('HINCRBY', job_key(id), 'num_commits', 1)
return 1
