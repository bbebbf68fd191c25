-- SaladCloud refused what workers were given up for: they are drained ones again, and the group is open.
-- ARGV: 1 group, 2 a worker counts if heard of within (s), 3 those that were given up at this time or later
-- Returns how many.
P = 'kelpie:g:' .. ARGV[1] .. ':'
local pardoned = 0
for _, w in ipairs(read_fleet(num(ARGV[2]))) do
  if w.condemned and num(w.condemned) >= num(ARGV[3]) then
    redis.call('HDEL', worker_key(w.id), 'condemned', 'condemned_by')
    pardoned = pardoned + 1
  end
end
redis.call('HDEL', P .. 'scaler', 'closed')
return pardoned
