"""What the commands for operators print: tables and timelines for people."""
