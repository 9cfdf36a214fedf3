"""The commands that ask AWS once and end: `wait` for pipelines, `check` before the exporter is started."""
