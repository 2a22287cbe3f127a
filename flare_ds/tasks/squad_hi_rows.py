"""Where XQuAD's paragraphs stand in the Hindi question-answering set: for each SQuAD article and paragraph (counted
from 0), the row of the paragraph's first question (counted from 0). Its other questions follow in SQuAD's order.

XQuAD has five paragraphs of each article, 240 in all. Ten are left out: six because the Hindi set holds fewer or more
rows than SQuAD holds questions, so that which is which cannot be told from the order, and four because their text
does not end in a full stop, so that it cannot be told from the questions. docs/offline_tasks.md has the evidence.
"""

from collections.abc import Mapping

FIRST_ROWS: Mapping[str, Mapping[int, int]] = {
    "Super_Bowl_50": {11: 1338, 18: 1367, 43: 1384, 51: 1396},
    "Warsaw": {9: 2257, 14: 2262, 41: 2267, 42: 2272, 46: 2275},
    "Normans": {4: 140, 8: 141, 11: 143, 13: 144, 34: 147},
    "Nikola_Tesla": {16: 6095, 37: 6105, 55: 6110, 87: 6113},
    "Computational_complexity_theory": {0: 870, 5: 873, 9: 878, 17: 880, 38: 884},
    "Teacher": {16: 5330, 50: 5335, 51: 5340, 55: 5345, 56: 5349},
    "Martin_Luther": {17: 1945, 32: 1950, 55: 1955, 57: 1960, 95: 1965},
    "Southern_California": {14: 1832, 22: 1837, 31: 1842, 36: 1852},
    "Sky_(United_Kingdom)": {10: 485, 11: 490, 13: 495, 20: 500, 21: 505},
    "Victoria_(Australia)": {3: 2709, 8: 2714, 11: 2719, 19: 2724, 20: 2729},
    "Huguenot": {8: 337, 28: 341, 35: 346, 43: 356},
    "Steam_engine": {11: 1974, 12: 1978, 18: 1983, 28: 1988, 34: 1993},
    "Oxygen": {11: 1135, 16: 1140, 22: 1144, 23: 1149, 33: 1154},
    "1973_oil_crisis": {4: 2376, 8: 2381, 12: 2386, 14: 2390, 19: 2393},
    "Apollo_program": {15: 6473, 31: 6478, 35: 6483, 36: 6487, 56: 6492},
    "European_Union_law": {4: 291, 12: 310, 23: 316, 27: 321},
    "Amazon_rainforest": {0: 1533, 12: 1548, 13: 1553, 14: 1558, 20: 1563},
    "Ctenophora": {4: 4808, 7: 4816, 27: 4820, 29: 4825},
    "Fresno,_California": {14: 5774, 15: 5779, 22: 5784, 25: 5789, 26: 5793},
    "Packet_switching": {5: 6321, 8: 6325, 11: 6329, 13: 6333, 20: 6336},
    "Black_Death": {6: 3672, 11: 3676, 16: 3681, 20: 3686, 22: 3691},
    "Geology": {4: 4339, 7: 4343, 19: 4348, 21: 4353, 22: 4358},
    "Newcastle_upon_Tyne": {2: 34, 13: 39, 31: 44, 39: 49, 46: 54},
    "Victoria_and_Albert_Museum": {2: 1476, 22: 1481, 37: 1486, 44: 1491, 46: 1496},
    "American_Broadcasting_Company": {23: 3865, 24: 3869, 37: 3873, 43: 3877, 72: 3880},
    "Genghis_Khan": {7: 1184, 10: 1189, 35: 1194, 43: 1199, 50: 1203},
    "Pharmacy": {2: 4647, 5: 4652, 7: 4657, 13: 4662, 20: 4667},
    "Immune_system": {2: 3769, 34: 3778, 35: 3782, 38: 3786, 44: 3790},
    "Civil_disobedience": {2: 524, 10: 534, 14: 544, 16: 553, 20: 558},
    "Construction": {0: 3824, 3: 3829, 4: 3833, 9: 3837, 13: 3841},
    "Private_school": {8: 4085, 18: 4093, 19: 4098},
    "Harvard_University": {2: 4713, 11: 4718, 15: 4721, 16: 4724, 27: 4728},
    "Jacksonville,_Florida": {0: 2760, 1: 2765, 4: 2770, 10: 2775, 18: 2780},
    "Economic_inequality": {30: 947, 31: 952, 33: 957, 34: 962, 35: 967},
    "Doctor_Who": {4: 4967, 26: 4972, 28: 4977, 37: 4982, 48: 4987},
    "University_of_Chicago": {9: 2537, 10: 2542, 16: 2547, 27: 2552, 32: 2557},
    "Yuan_dynasty": {13: 2500, 16: 2505, 27: 2510, 37: 2515, 43: 2520},
    "Kenya": {15: 4999, 18: 5003, 22: 5008, 37: 5012, 49: 5016},
    "Intergovernmental_Panel_on_Climate_Change": {1: 6164, 6: 6169, 11: 6174, 13: 6178, 20: 6182},
    "Chloroplast": {4: 695, 5: 700, 20: 705, 25: 710, 29: 714},
    "Prime_number": {0: 1886, 1: 1891, 19: 1896, 24: 1901, 29: 1906},
    "Rhine": {19: 5747, 28: 5750, 30: 5755, 41: 5760},
    "Scottish_Parliament": {3: 672, 18: 677, 21: 682, 24: 686, 35: 690},
    "Islamism": {3: 202, 8: 207, 9: 212, 27: 217, 33: 222},
    "Imperialism": {7: 4217, 10: 4222, 13: 4227, 19: 4232, 23: 4237},
    "United_Methodist_Church": {2: 5239, 18: 5242, 19: 5245, 24: 5249, 38: 5252},
    "French_and_Indian_War": {6: 4624, 8: 4628, 22: 4631, 23: 4634, 31: 4637},
    "Force": {2: 2568, 27: 2577, 28: 2581, 37: 2585},
}
