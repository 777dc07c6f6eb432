"""The mesh and the table of shardings."""
