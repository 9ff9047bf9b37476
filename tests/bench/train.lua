-- What clients ask of an agent that is trained (`training.rs`): heads as browsers, scripts and services write them.
-- Arguments: `named` (each request its host) or `one` (all of them `localhost`), then `close` for a connection each.
local BROWSER = {
   ["User-Agent"] = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
   ["Accept"] = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
   ["Accept-Language"] = "en-US,en;q=0.5",
   ["Accept-Encoding"] = "gzip, deflate, br, zstd",
   ["Cookie"] = "theme=dark; basket=8f14e45fceea167a5a36dedd4bea2543; seen=1",
   ["Referer"] = "https://shop.example/",
}
local SERVICE = { ["User-Agent"] = "Go-http-client/1.1", ["Content-Type"] = "application/json" }
local SCRIPT = { ["User-Agent"] = "curl/8.14.1", ["Accept"] = "*/*" }

local function with(headers, more)
   local all = {}
   for name, value in pairs(headers) do all[name] = value end
   for name, value in pairs(more or {}) do all[name] = value end
   return all
end

local LIST = {
   { "shop.example", "GET", "/", {} },
   { "shop.example", "GET", "/", BROWSER },
   { "shop.example", "GET", "/assets/app.3f2a9c.js?v=12", BROWSER },
   { "shop.example", "GET", "/items/1742?sort=price&page=3", SCRIPT },
   { "shop.example", "POST", "/basket", with(SERVICE), '{"item":1742,"count":2}' },
   { "shop.example", "PUT", "/pictures/7", SCRIPT, string.rep("p", 20000) },
   { "shop.example", "GET", "/download/16384", SCRIPT },
   { "api.example", "GET", "/v1/users/42", SERVICE },
   { "api.example", "POST", "/v1/orders", with(SERVICE, { ["X-Request-ID"] = "5c1f", ["X-Forwarded-For"] = "192.0.2.7" }), '{"order":[1,2,3]}' },
   { "api.example", "GET", "/v1/users/42", with(SERVICE, { ["Origin"] = "https://shop.example" }) },
   { "admin.example", "GET", "/", with(SCRIPT, { ["Authorization"] = "Basic dXNlcjpwYXNzd29yZA==" }) },
   { "session.example", "GET", "/", BROWSER },
   { "canary.example", "GET", "/", SCRIPT },
}

local requests, at = {}, 0

function init(args)
   local named, close = args[1] == "named", args[2] == "close"
   for _, one in ipairs(LIST) do
      local host, method, path, headers, body = unpack(one)
      local head = with(headers, { ["Host"] = named and host or "localhost" })
      if close then head["Connection"] = "close" end
      table.insert(requests, wrk.format(method, path, head, body))
   end
end

function request()
   at = at % #requests + 1
   return requests[at]
end
