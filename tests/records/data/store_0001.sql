-- A store as schema 0001 wrote it: one run, no studies.
CREATE TABLE muonlab_version (version_num VARCHAR(32) NOT NULL, CONSTRAINT muonlab_version_pkc PRIMARY KEY (version_num));
INSERT INTO muonlab_version VALUES ('0001');
CREATE TABLE runs (
    "key" VARCHAR(64) NOT NULL,
    task TEXT NOT NULL,
    optimizer TEXT NOT NULL,
    outcome VARCHAR(16) NOT NULL,
    horizon_tokens BIGINT NOT NULL,
    seed BIGINT NOT NULL,
    final_loss DOUBLE,
    wall_seconds DOUBLE NOT NULL,
    created VARCHAR(40) NOT NULL,
    checksum BIGINT NOT NULL,
    record TEXT NOT NULL,
    PRIMARY KEY ("key")
);
INSERT INTO runs VALUES ('5c622e071c4153989c50a6a48f6411dc38c7ed5617a9ec626c21bde129f760bc', 'text', 'muon', 'ok', 2048, 12, 1.25, 0.0, '2026-11-23T00:00:00+00:00', 3141938897,
'{"schema_version":1,"key":"5c622e071c4153989c50a6a48f6411dc38c7ed5617a9ec626c21bde129f760bc","spec":{"task":"text","optimizer":"muon","horizon_tokens":2048,"batch_tokens":512,"seed":12,"hyperparameters":{"opt.lr":0.02}},"outcome":"ok","final_loss":1.25,"train_steps":[1,4],"train_loss":[2.5,1.5],"eval_steps":[],"eval_loss":[],"diverged_step":null,"last_finite_loss":null,"error":"","attempts":1,"wall_seconds":0.0,"step_seconds":null,"eval_seconds":0.0,"tokens":2048,"flops":0.0,"params":{},"peak_bytes":null,"environment":{},"created":"2026-11-23T00:00:00+00:00"}');
