-- How a group's workers stand; and those that SaladCloud had its time to delete, and did not, are pardoned.
-- ARGV: 1 group, 2 a worker counts if heard of within (s), 3 pardon those condemned by a stop longer ago than (s),
--       4 pardon those condemned by a shrink longer ago than (s)
-- Returns {workers, slots, busy, draining idle, draining busy, draining unsettled, condemned, withdrawn, their free
--          slots}
P = 'kelpie:g:' .. ARGV[1] .. ':'
local all = read_fleet(num(ARGV[2]))
for _, w in ipairs(all) do
  local patience_s = num(w.condemned_by == 'stop' and ARGV[3] or ARGV[4])
  if w.condemned and now - num(w.condemned) > patience_s then
    redis.call('HDEL', worker_key(w.id), 'condemned', 'condemned_by')
    w.condemned = nil
  end
end
return tally(all)
