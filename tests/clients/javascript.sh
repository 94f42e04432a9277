# The JavaScript client: typed objects, generic ones, informers, patches, sessions.
exec node javascript.mjs
