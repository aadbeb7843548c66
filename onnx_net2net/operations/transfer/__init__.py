"""A target of the user's, filled from a teacher."""
