ALTER TABLE jobs ADD COLUMN user TEXT NOT NULL DEFAULT '';
ALTER TABLE jobs ADD COLUMN arch TEXT NOT NULL DEFAULT '';          -- where its last attempt is or was; '' without one
ALTER TABLE jobs ADD COLUMN platform TEXT NOT NULL DEFAULT '';
ALTER TABLE jobs ADD COLUMN host TEXT NOT NULL DEFAULT '';
ALTER TABLE jobs ADD COLUMN environment TEXT NOT NULL DEFAULT '';
ALTER TABLE jobs ADD COLUMN started_s REAL;
UPDATE jobs SET user = coalesce(json_extract(CAST(spec AS TEXT), '$.user'), '');
UPDATE jobs SET
    arch = coalesce(json_extract(CAST(placement AS TEXT), '$.environment.arch'), ''),
    platform = coalesce(json_extract(CAST(placement AS TEXT), '$.environment.platform'), ''),
    host = coalesce(json_extract(CAST(placement AS TEXT), '$.host'), ''),
    environment = coalesce(json_extract(CAST(placement AS TEXT), '$.environment.name'), ''),
    started_s = json_extract(CAST(placement AS TEXT), '$.started_s')
    WHERE placement IS NOT NULL;
UPDATE jobs SET
    arch = coalesce(json_extract(CAST(ended.record AS TEXT), '$.arch'), ''),
    platform = coalesce(json_extract(CAST(ended.record AS TEXT), '$.platform'), ''),
    host = coalesce(json_extract(CAST(ended.record AS TEXT), '$.host'), ''),
    environment = coalesce(json_extract(CAST(ended.record AS TEXT), '$.environment'), ''),
    started_s = (julianday(json_extract(CAST(ended.record AS TEXT), '$.started')) - 2440587.5) * 86400
    FROM attempts AS ended
    WHERE jobs.state = 'finished' AND ended.job = jobs.job AND ended.attempt = jobs.last_attempt;
CREATE INDEX jobs_listed ON jobs (job, outcome, host, environment, arch, platform, user, worker, name)
    WHERE state = 'finished';
