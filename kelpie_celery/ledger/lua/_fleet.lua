-- Shared by the operations on a group's workers; it is put behind _common.lua.
--
-- P workers   zset  worker -> its last sign of life
-- P worker:<worker>  hash
--   name, machine, instance, slots, jobs   as its last sign of life told them; jobs: attempts in its process
--   draining    until when it is to claim nothing: the scaler renews it, so that without a scaler everybody works
--   settled     '1': it knows, and has told SaladCloud that it costs nothing to delete
--   untold      '1': SaladCloud has an older cost of it, by which another one may go in its place, or it in another's
--   by_hand     '1': a person had it take nothing more; it does not until it ends, and is the first to be drained
--   condemned, condemned_by                since when SaladCloud may delete it, by 'shrink' or 'stop'
-- P scaler, field closed: until when no worker of the group claims anything, since the group is being stopped.
-- A worker is idle when no record says that it runs a job and its process has none. Claims are in the records at once, and
-- operations do not overlap: so a worker that claimed a moment before is not idle, and one that drains does not claim.

local WORKERS_MAX, RUNNING_MAX = 5000, 10000

local function worker_key(worker) return P .. 'worker:' .. worker end

-- The workers that a running job's record names.
local function holders()
  local held = {}
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. 'running', '-inf', '+inf', 'LIMIT', 0, RUNNING_MAX)) do
    local holder = get(id, 'holder')
    if holder and holder ~= '' then held[holder] = true end
  end
  return held
end

-- Every worker that was heard of lately, or that holds a running job.
local function read_fleet(alive_s)
  local held, seen, all, any_busy = holders(), {}, {}, false
  local function add(worker)
    seen[worker] = true
    local r = redis.call('HMGET', worker_key(worker), 'slots', 'jobs', 'draining', 'settled', 'condemned', 'condemned_by',
      'untold', 'by_hand')
    all[#all + 1] = {id = worker, slots = num(r[1]), busy = held[worker] or num(r[2]) > 0, draining = num(r[3]) > now,
      settled = r[4] == '1',
      condemned = r[5], condemned_by = r[6], untold = r[7] == '1', by_hand = r[8] == '1',
      vacant = math.max(0, num(r[1]) - num(r[2]))}
  end
  local since = ts(now - alive_s)
  for _, worker in ipairs(redis.call('ZREVRANGEBYSCORE', P .. 'workers', '+inf', since, 'LIMIT', 0, WORKERS_MAX)) do
    add(worker)
  end
  for worker in pairs(held) do
    if not seen[worker] then add(worker) end
  end
  for _, w in ipairs(all) do any_busy = any_busy or w.busy end
  -- One that could not tell its cost counts as settled where nobody has a job to lose in its place.
  for _, w in ipairs(all) do w.settled = w.settled and not (w.untold and any_busy) end
  return all
end

-- {workers, slots, busy, draining idle, draining busy, draining that have not settled yet, condemned, withdrawn, their
-- free slots}; those that are condemned count nowhere else. Withdrawn ones have a free slot that takes nothing, by a
-- person's word.
local function tally(all)
  local workers, slots, busy, idle, at_work, unsettled, condemned, withdrawn, vacant = 0, 0, 0, 0, 0, 0, 0, 0, 0
  for _, w in ipairs(all) do
    if w.condemned then
      condemned = condemned + 1
    else
      workers, slots = workers + 1, slots + w.slots
      if w.busy then busy = busy + 1 end
      if w.by_hand and w.vacant > 0 and not w.draining then
        withdrawn, vacant = withdrawn + 1, vacant + w.vacant
      end
      if w.draining and w.busy then
        at_work = at_work + 1
      elseif w.draining and w.settled then
        idle = idle + 1
      elseif w.draining then
        unsettled = unsettled + 1
      end
    end
  end
  return {workers, slots, busy, idle, at_work, unsettled, condemned, withdrawn, vacant}
end
