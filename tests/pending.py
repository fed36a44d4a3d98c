"""Chapters whose rows are still being computed: their pages are not executed yet.

They are left out of what needs executed pages and shipped rows, and of nothing else. The list
shrinks to nothing: remove a chapter when ``acelib run CHAPTER --update`` has been committed.
"""

PENDING = {
    "00_world",
    "04_ablations",
    "05_knowledge_bottleneck",
    "06_ripple",
    "appendix_i_latency",
    "appendix_j_alphaedit",
    "appendix_l_benchmarks",
    "appendix_l_robustness",
    "appendix_m_derivation",
}
