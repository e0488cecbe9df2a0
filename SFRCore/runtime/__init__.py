"""What a running job needs: safe files, locks, events, the process itself."""
