"""Ray jobs and Kubernetes."""
