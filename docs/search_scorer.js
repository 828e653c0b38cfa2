/* How the site's search orders results: pages for people before attributes of the Python reference and before evidence. */
var Scorer = {
  score: ([page, title, anchor, description, score, file, kind]) => {
    if (/^(results|decisions)\/|^changelog$/.test(page)) return score - 12;
    if (/^(architecture|releasing|contributing)$/.test(page)) return score - 4;
    if (page === "api") return score - (kind === "object" ? 18 : 3);
    return score;
  },
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: {0: 15, 1: 5, 2: -5},
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
