"""All that knows Redis and Lua: keys and tags, scripts, shards, connections, the embedded server."""
