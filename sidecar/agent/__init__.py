"""A sidecar's own identity all its life: enrolment, renewal, what is accepted from the CA, what is kept on disk."""
