-- A resource (cpu, memory, disk) of one replica that is nearly used up, on average over the window.
--
-- severity: critical
-- for: 2m
-- summary: {replica} uses {used_percent} % of its {resource}
-- description: {resource} of {replica} ({service}) has been used by more than 90 % for 2 minutes.
SELECT service,
       replica,
       resource,
       used_ratio AS value,
       round(used_ratio * 100, 1) AS used_percent
FROM resource_use_30s
WHERE used_ratio > 0.90;
