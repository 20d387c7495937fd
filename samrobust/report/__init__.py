"""What stored scores become: compared and summarised runs, tables and plots."""
