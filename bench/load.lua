-- The requests of wrk: each of another user. KIND is single, wait, batch, hot, reads, or, of the busy users only,
-- balance, history or statement; USERS names a file with a line for each user: access token, account id, user id.
local kind, path = os.getenv("KIND"), os.getenv("USERS")
local tokens, accounts, ids = {}, {}, {}
for line in io.lines(path) do
  local token, account, id = line:match("(%S+) (%S+) (%S+)")
  tokens[#tokens + 1], accounts[#accounts + 1], ids[#ids + 1] = token, account, id
end
local service, batch_size = os.getenv("SERVICE"), 1000
local runners = {}

function setup(thread)
  runners[#runners + 1] = thread
  thread:set("number", #runners)
end

function init()
  math.randomseed(os.time() * 1000 + number)
end

local function anyone() return math.random(#tokens) end

local function transfer(sender)
  return string.format('{"type":"transfer","amount":1,"to_account_id":"%s"}', accounts[sender % #accounts + 1])
end

local function item(sender)
  local receiver = kind == "hot" and 1 or sender % #accounts + 1
  if sender == receiver then sender = 2 end
  return string.format('{"type":"transfer","amount":1,"user_id":"%s","to_account_id":"%s"}',
    ids[sender], accounts[receiver])
end

local made = {}  -- items by sender: to make each anew is most of what a batch costs here

local function batch()
  local items = {}
  for i = 1, batch_size do
    local sender = anyone()
    made[sender] = made[sender] or item(sender)
    items[i] = made[sender]
  end
  return '{"operations":[' .. table.concat(items, ",") .. "]}"
end

function request()
  local user = anyone()
  local headers = {["Authorization"] = "Bearer " .. tokens[user], ["Content-Type"] = "application/json"}
  if kind == "balance" or kind == "history" or kind == "statement" then
    user = math.random(50)
    headers["Authorization"] = "Bearer " .. tokens[user]
    local paths = {
      balance = "/v1/accounts/" .. accounts[user],
      history = "/v1/operations?limit=20",
      statement = "/v1/accounts/" .. accounts[user] .. "/statement?limit=20",
    }
    return wrk.format("GET", paths[kind], headers)
  elseif kind == "reads" then
    return wrk.format("GET", "/v1/accounts/" .. accounts[user], headers)
  elseif kind == "wait" then
    headers["Prefer"] = "wait=5"
    return wrk.format("POST", "/v1/operations", headers, '{"type":"deposit","amount":1}')
  elseif kind == "single" then
    return wrk.format("POST", "/v1/operations", headers, transfer(user))
  end
  headers["Authorization"] = "Bearer " .. service
  return wrk.format("POST", "/v1/operations/batch", headers, batch())
end

-- Looking at each answer costs; wrk counts those from 400 on by itself.
answered = {}
if os.getenv("COUNT_STATUSES") then
  function response(status) answered[status] = (answered[status] or 0) + 1 end
end

function done(summary, latency)
  local errors, counts = summary.errors, {}
  for _, runner in ipairs(runners) do
    for status, times in pairs(runner:get("answered")) do
      counts[#counts + 1] = string.format('"%d": %d', status, times)
    end
  end
  print(string.format(
    'RESULT {"requests": %d, "microseconds": %d, "p50": %d, "p99": %d, "refused": %d, "torn": %d, "statuses": {%s}}',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99), errors.status,
    errors.connect + errors.read + errors.write + errors.timeout, table.concat(counts, ", ")))
end
