// Answers as a person would want them. Text goes in as text only, never as markup.

export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// Rows and columns of a table of cosines: every cell is drawn.
const MOST_SHOWN = 48;
// Of a value that has no picture; the whole is in the JSON.
const MOST_CHARACTERS = 400;

const percent = (score) => (score >= 0 && score <= 1 ? `${(100 * score).toFixed(1)} %` : score.toFixed(3));

// The style rules of this page allow no style attributes: widths and strengths are drawn.
function drawn(attributes) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  const rect = document.createElementNS(space, "rect");
  svg.setAttribute("aria-hidden", "true");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("viewBox", "0 0 100 10");
  for (const [key, value] of Object.entries({ height: 10, rx: 1, ...attributes })) rect.setAttribute(key, value);
  svg.append(rect);
  return svg;
}

export function bars(rows, caption) {
  const lowest = Math.min(0, ...rows.map((row) => row.score));
  const highest = Math.max(rows.every((row) => row.score <= 1) ? 1 : 0, ...rows.map((row) => row.score));
  const best = Math.max(...rows.map((row) => row.score));
  const body = rows.map((row) => {
    const width = (100 * (row.score - lowest)) / (highest - lowest || 1);
    return element("tr", row.score === best ? { class: "best" } : {},
      element("th", { scope: "row", dir: "auto" }, row.label),
      element("td", {}, drawn({ width })),
      element("td", {}, percent(row.score)));
  });
  return element("table", { class: "bars" }, element("caption", {}, caption), element("tbody", {}, ...body));
}

// Offsets of the service count characters; those of JavaScript's strings count halves of some.
export function marked(text, spans) {
  const characters = Array.from(text);
  const colours = new Map();
  const whole = element("p", { class: "text", dir: "auto" });
  let at = 0;
  for (const span of [...spans].sort((a, b) => a.start - b.start)) {
    if (span.start < at) continue;
    if (!colours.has(span.label)) colours.set(span.label, colours.size % 8);
    const note = element("small", { dir: "ltr" }, span.note);
    whole.append(characters.slice(at, span.start).join(""),
      element("mark", { class: `c${colours.get(span.label)}` }, characters.slice(span.start, span.end).join(""), note));
    at = span.end;
  }
  whole.append(characters.slice(at).join(""));
  return whole;
}

function cosine(a, b) {
  let product = 0, first = 0, second = 0;
  for (let i = 0; i < a.length; i += 1) {
    product += a[i] * b[i];
    first += a[i] * a[i];
    second += b[i] * b[i];
  }
  return product / Math.sqrt(first * second || 1);
}

export function heat(texts, rows, caption) {
  const values = rows.flat();
  const lowest = Math.min(...values), highest = Math.max(...values);
  const numbers = texts.map((_, place) => element("th", { scope: "col" }, String(place + 1)));
  const body = rows.map((row, place) => element("tr", {},
    element("th", { scope: "row" }, `${place + 1}. `, element("bdi", {}, texts[place])),
    ...row.map((value) => {
      const strength = (value - lowest) / (highest - lowest || 1);
      return element("td", {}, drawn({ width: 100, rx: 0, "fill-opacity": strength.toFixed(3) }), value.toFixed(3));
    })));
  return element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    element("table", { class: "heat" }, element("caption", {}, caption),
      element("thead", {}, element("tr", {}, element("td"), ...numbers)), element("tbody", {}, ...body)));
}

const paragraph = (text, kind = "text") => element("p", { class: kind, dir: "auto" }, text);

export const show = {
  "text-classification": (answer) => [bars(answer[0], "Classes")],

  "token-classification"(answer, given) {
    const spans = answer.map((one) => ({ ...one, label: one.entity_group ?? one.entity }));
    const counts = new Map();
    for (const span of spans) counts.set(span.label, (counts.get(span.label) ?? 0) + 1);
    const said = [...counts].map(([label, count]) => `${label}: ${count}`).join(", ");
    const noted = spans.map((span) => ({ ...span, note: `${span.label} ${percent(span.score)}` }));
    return [marked(given.text, noted), paragraph(said || "No entities were found.", "note")];
  },

  "fill-mask"(answer, given) {
    const masks = Array.isArray(answer[0]) ? answer : [answer];
    const pieces = given.text.split("<mask>");
    const whole = element("p", { class: "text", dir: "auto" });
    pieces.forEach((piece, place) => {
      whole.append(piece);
      if (place < masks.length && place < pieces.length - 1) {
        const best = masks[place][0];
        whole.append(element("mark", { class: `c${place % 8}` }, best.token_str.trim() || best.token_str,
          element("small", { dir: "ltr" }, percent(best.score))));
      }
    });
    return [whole, ...masks.map((fills, place) =>
      bars(fills.map((fill) => ({ label: fill.token_str, score: fill.score })), `Mask ${place + 1}`))];
  },

  "question-answering"(answer, given) {
    const answers = Array.isArray(answer) ? answer : [answer];
    const best = answers[0];
    if (!best?.answer) return [paragraph("The context has no answer.", "big")];
    const span = { ...best, label: "answer", note: percent(best.score) };
    return [paragraph(best.answer, "big"), marked(given.context, [span]),
      bars(answers.map((one) => ({ label: one.answer || "(none)", score: one.score })), "Answers")];
  },

  "zero-shot-classification": (answer) => [bars(answer, "Labels")],

  "multiple-choice"(answer, given) {
    const scores = answer.scores ?? given.choices.map((_, place) => (place === answer.choice ? answer.score : 0));
    return [bars(given.choices.map((label, place) => ({ label, score: scores[place] })), "Choices")];
  },

  "text-generation"(answer, given) {
    const written = (Array.isArray(answer) ? answer[0] : answer).generated_text;
    const rest = written.startsWith(given.text) ? written.slice(given.text.length) : written;
    const whole = element("p", { class: "text", dir: "auto" }, given.text);
    whole.append(element("mark", {}, rest));
    return [whole];
  },

  rerank(answer, given) {
    const ranked = answer.map((one) => ({ label: given.documents[one.index], score: one.relevance_score }));
    return [bars(ranked, "Documents, best first")];
  },

  "sentence-similarity": (answer, given) =>
    [bars(given.sentences.map((label, place) => ({ label, score: answer[place] })), "How near to the first")],

  embedding(answer, given) {
    const vectors = answer.slice(0, MOST_SHOWN);
    const rows = vectors.map((one) => vectors.map((other) => cosine(one, other)));
    return [heat(given.texts.slice(0, MOST_SHOWN), rows,
      `Cosines of ${vectors.length} vectors of ${answer[0].length} numbers`)];
  },

  "feature-extraction"(answer) {
    const first = answer[0];
    const all = Array.isArray(first[0]) ? first : [first];
    const tokens = all.slice(0, MOST_SHOWN);
    const rows = tokens.map((one) => tokens.map((other) => cosine(one, other)));
    return [heat(tokens.map((_, place) => `token ${place + 1}`), rows,
      `Cosines of the states of ${all.length > tokens.length ? `the first ${tokens.length} of ` : ""}${all.length} ` +
      `tokens, ${tokens[0].length} numbers each`)];
  },

  perplexity: likelihood,
  "pseudo-perplexity": likelihood,
};

// What a task gives that is not named above: a row a field, of numbers in lists only how many there are.
export function facts(answer) {
  const several = Array.isArray(answer) && answer.every((one) => one !== null && typeof one === "object");
  const rows = (one) => Object.entries(one !== null && typeof one === "object" ? one : { answer: one }).map(([name, value]) =>
    element("tr", {}, element("th", { scope: "row", dir: "auto" }, name), element("td", { dir: "auto" }, brief(value))));
  const shown = several ? answer.slice(0, MOST_SHOWN) : [answer];
  return shown.map((one, place) => element("table", { class: "facts" },
    element("caption", {}, several ? `Answer ${place + 1} of ${answer.length}` : "Answer"), element("tbody", {}, ...rows(one))));
}

function brief(value) {
  if (Array.isArray(value) && value.flat(9).every((one) => typeof one === "number")) {
    const sizes = [];
    for (let at = value; Array.isArray(at); at = at[0]) sizes.push(at.length);
    if (sizes.length > 1 || sizes[0] > 8) return `${sizes.join(" × ")} numbers`;
  }
  const said = typeof value === "string" ? value : JSON.stringify(value);
  const characters = Array.from(said);
  return characters.length > MOST_CHARACTERS ? `${characters.slice(0, MOST_CHARACTERS).join("")}…` : said;
}

function likelihood(answer) {
  const facts = Object.entries(answer).filter(([name]) => name !== "perplexity");
  // A text of which nothing is left but special tokens, such as an ideographic space, has none.
  return [paragraph(answer.perplexity === null ? "none" : answer.perplexity.toFixed(2), "big"),
    paragraph(`perplexity; ${facts.map(([name, value]) => `${name} ${value}`).join(", ")}`, "note")];
}
