"""The export template: models and kernels at any plan, without an exporter."""
