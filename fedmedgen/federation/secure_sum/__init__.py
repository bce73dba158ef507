"""A sum of vectors of whole numbers of which the server sees only the sum.

Five phases, each a message and its answer: keys are advertised, shares of two secrets dealt out, masked vectors sent,
the list of those who sent one signed, and for each site one of its two secrets opened.

**Source** Bonawitz et al. 2017, against an active server, with keys pinned by the sites themselves.
"""
