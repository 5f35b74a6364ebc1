"""Programs that tests run in processes of their own, and the calls that they make."""
