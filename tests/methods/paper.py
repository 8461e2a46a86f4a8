"""The methods of the paper, by the names of their files."""

TABLE_4 = {
    "bam",
    "cgql",
    "cgql_linex",
    "cgql_mse",
    "dac",
    "dsrl",
    "fawac",
    "fbrac",
    "fedit",
    "fql",
    "ifql",
    "qam",
    "qam_edit",
    "qam_fql",
    "qsm",
    "rebrac",
    "rlpd",
}
"""The seventeen that Table 4 tunes, or, as RLPD, leaves as they are."""
