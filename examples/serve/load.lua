-- Requests of wrk: lists of random users, or of sessions of five random items.
local what, users, items = os.getenv("WHAT"), tonumber(os.getenv("USERS")), tonumber(os.getenv("ITEMS"))
local failed = 0

function init()
  math.randomseed(7)
end

function request()
  if what == "users" then
    return wrk.format("GET", "/users/" .. math.random(0, users - 1))
  end
  local own = {}
  for i = 1, 5 do
    own[i] = math.random(0, items - 1)
  end
  local body = '{"items": [' .. table.concat(own, ", ") .. "]}"
  return wrk.format("POST", "/sessions", { ["Content-Type"] = "application/json" }, body)
end
