-- Every operation of the store; ARGV[1] says which. KEYS[1] is the cluster's prefix.
-- A record is a hash: v the value, r the revision of its last write, l the lease it hangs on,
-- w the call that wrote it.
local P, op = KEYS[1], ARGV[1]
local function get(name)
  local e = redis.call('HMGET', P .. '/' .. name, 'v', 'r', 'l', 'w')
  if not e[1] then return nil end
  return { v = e[1], r = e[2], l = e[3], w = e[4] }
end
local function said(r)
  redis.call('PUBLISH', P .. ':changed', r)
  return r
end
local function put(name, value, lease, ttl, call)
  local r, key = redis.call('INCR', P .. ':rev'), P .. '/' .. name
  redis.call('HSET', key, 'v', value, 'r', r, 'l', lease, 'w', call)
  redis.call('SADD', P .. ':keys', name)
  if ttl > 0 then redis.call('PEXPIRE', key, ttl) else redis.call('PERSIST', key) end
  return said(r)
end
local function del(name)
  redis.call('SREM', P .. ':keys', name)
  if redis.call('DEL', P .. '/' .. name) == 0 then return tonumber(redis.call('GET', P .. ':rev') or 0) end
  return said(redis.call('INCR', P .. ':rev'))
end
local function met(e, expect)
  if expect == 'any' then return true end
  if expect == 'absent' then return e == nil end
  return e ~= nil and e.r == expect
end
-- Answers: {1, revision} done; {0, value, revision} not as expected; {2} not there.
local function refused(e)
  if e == nil then return { 2 } end
  return { 0, e.v, tonumber(e.r) }
end

if op == 'load' then
  local all = { tonumber(redis.call('GET', P .. ':rev') or 0) }
  for _, name in ipairs(redis.call('SMEMBERS', P .. ':keys')) do
    local e = get(name)
    if e then
      for _, part in ipairs({ name, e.v, tonumber(e.r), e.l, redis.call('PTTL', P .. '/' .. name) }) do
        all[#all + 1] = part
      end
    end
  end
  return all
elseif op == 'set' then
  local name, value, expect, call = ARGV[2], ARGV[3], ARGV[4], ARGV[5]
  local e = get(name)
  -- My own earlier sending.
  if e and e.w == call then return { 1, tonumber(e.r) } end
  if not met(e, expect) then return refused(e) end
  return { 1, put(name, value, '', 0, call) }
elseif op == 'member' then
  local name, value, lease, ttl = ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
  local e = get(name)
  if e and e.v == value and e.l == lease then
    redis.call('PEXPIRE', P .. '/' .. name, ttl)
    return { 1, tonumber(e.r) }
  end
  return { 1, put(name, value, lease, ttl, '') }
elseif op == 'delete' then
  local name, expect = ARGV[2], ARGV[3]
  local e = get(name)
  if not met(e, expect) then return refused(e) end
  return { 1, del(name) }
elseif op == 'begin' then
  local call, e = ARGV[2], get('initialize')
  if e and e.w == call then return { 1, tonumber(e.r) } end
  if e then return refused(e) end
  return { 1, put('initialize', '', '', 0, call) }
elseif op == 'lock' then
  -- create: may a lock that is not there be made? renew: may one with my name be bound again?
  -- force: whoever holds it.
  local me, lease, ttl = ARGV[2], ARGV[3], tonumber(ARGV[4])
  local create, renew, force = ARGV[5] == '1', ARGV[6] == '1', ARGV[7] == '1'
  local e = get('leader')
  if e and e.l == lease and e.v == me then
    redis.call('PEXPIRE', P .. '/leader', ttl)
    return { 1, tonumber(e.r) }
  end
  if e == nil and not create then return { 2 } end
  if e and not force and not (renew and e.v == me) then return refused(e) end
  return { 1, put('leader', me, lease, ttl, '') }
elseif op == 'release' then
  local me, has, status = ARGV[2], ARGV[3] == '1', ARGV[4]
  local e = get('leader')
  if e == nil or e.v ~= me then return refused(e) end
  if has then put('status', status, '', 0, '') end
  return { 1, del('leader') }
elseif op == 'wipe' then
  for _, name in ipairs(redis.call('SMEMBERS', P .. ':keys')) do redis.call('DEL', P .. '/' .. name) end
  redis.call('DEL', P .. ':keys')
  return { 1, said(redis.call('INCR', P .. ':rev')) }
end
return redis.error_reply('no operation ' .. op)
