-- Publishes a message of any task once by its id: what follows a job (a plain callback, link or chord body) is sent again
-- when the job's bookkeeping is replayed, and must not run twice.
-- ARGV: 1 task id, 2 list, 3 message (kombu JSON), 4 remembered for (s)
-- Returns 1 when it went out, 0 when it had gone out before.
-- Asked first: a user who may not write there must leave no mark, or nobody else would publish it either.
redis.call('LLEN', ARGV[2])
if not redis.call('SET', 'kelpie:once:' .. ARGV[1], 1, 'NX', 'EX', ARGV[4]) then return 0 end
redis.call('LPUSH', ARGV[2], ARGV[3])
return 1
