"""What the command line's commands do: functions of their options, which print for a person."""
