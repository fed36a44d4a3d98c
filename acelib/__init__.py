"""Where a language model recalls a fact, and how to change it.

ACE, the editors that it is compared with, and a book that measures both. Start with
``model.loading.load``, ``records.Edit`` and ``editors.preset``; README.md shows them together and
names the function of every equation.
"""
