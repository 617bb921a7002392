"""Tables, JSON and pages made of result objects; nothing is computed here."""
