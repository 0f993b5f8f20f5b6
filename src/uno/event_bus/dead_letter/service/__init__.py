"""The queue over HTTP: `app` has the routes, `server` listens, `access` knows who may do what."""
