"""The compiler: a teacher and a request in, a student out (analysis, choosing, rewriting, fitting)."""
