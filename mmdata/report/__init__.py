"""What people look at: tables, explanations, the run's page."""
