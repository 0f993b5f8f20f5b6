"""Spans of captures, takes, attempts and settles, by the messaging conventions (names: `telemetry.semconv`).

All of a letter hangs on one trace, that of its capture. Its headers hold the *creation context*, and nobody ever
changes it; the history holds the context of the last attempt that failed. So each attempt, in whatever process and
however many days later, is a child of the creation context, linked to it, and linked to the attempt before::

    send orders ──┬── process orders (attempt 1, ERROR)
                  ├── process orders (attempt 2, ERROR)   link: attempt 1
                  └── process orders (attempt 3)          link: attempt 2

A take and a settle are of many letters, so of many traces: their spans stand alone, and link to the letters.

Nothing here may harm a letter: what a span processor, a sampler or a propagator raises is logged once, and the letter
goes on without its span. Off, that is with no provider but the API's own, the engine has None in place of these
objects, and asks no more of them than that.
"""
