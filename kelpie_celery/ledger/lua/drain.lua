-- Brings the number of workers that drain to what is wanted: chooses idle ones, or takes drains back.
-- ARGV: 1 group, 2 how many should drain in all, 3 a worker counts if heard of within (s), 4 how long a drain holds (s)
-- Returns {chosen now, taken back now}; fewer are chosen where fewer are idle.
-- Invariants: a worker that holds a job is never chosen; one that is condemned is never taken back, nor counted.
P = 'kelpie:g:' .. ARGV[1] .. ':'
local wanted, alive_s, till = num(ARGV[2]), num(ARGV[3]), ts(now + num(ARGV[4]))
local all = read_fleet(alive_s)
local draining, chosen, back = {}, 0, 0
for _, w in ipairs(all) do
  if w.draining and not w.condemned then draining[#draining + 1] = w end
end
local function take_back(w)
  redis.call('HDEL', worker_key(w.id), 'draining', 'settled')
  w.draining, back = false, back + 1
end

-- First those that hold a job after all (a lease that had run out was renewed).
for _, at_work in ipairs({true, false}) do
  for _, w in ipairs(draining) do
    if #draining - back > wanted and w.draining and (w.busy and true or false) == at_work then take_back(w) end
  end
end
if wanted == 0 then
  -- Also those that are silent: should they come back, they are to work.
  for _, worker in ipairs(redis.call('ZRANGEBYSCORE', P .. 'workers', '-inf', ts(now - alive_s), 'LIMIT', 0, WORKERS_MAX)) do
    if redis.call('HEXISTS', worker_key(worker), 'condemned') == 0 then
      redis.call('HDEL', worker_key(worker), 'draining', 'settled')
    end
  end
end
for _, w in ipairs(draining) do
  if w.draining then redis.call('HSET', worker_key(w.id), 'draining', till) end
end
-- First those that take nothing anyway, by a person's word.
for _, by_hand in ipairs({true, false}) do
  for _, w in ipairs(all) do
    if #draining - back + chosen < wanted and w.by_hand == by_hand and not w.draining and not w.busy and not w.condemned
    then
      redis.call('HDEL', worker_key(w.id), 'settled')
      redis.call('HSET', worker_key(w.id), 'draining', till)
      chosen = chosen + 1
    end
  end
end
return {chosen, back}
