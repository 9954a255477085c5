"""Faithfulness of chains of thought: questions, transcripts, labels, data set, hypotheses."""
