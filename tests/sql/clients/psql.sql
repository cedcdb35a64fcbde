-- What psql's commands ask, as those of its own that it sends.
-- has: samples
\dt
-- has: metric
\d
-- has: timestamp with time zone
\d samples
-- has: metrics
\dv
-- has: bellwether
\l
-- has: public
\dn
-- has: value
\d metrics
\di
\ds
\dx
