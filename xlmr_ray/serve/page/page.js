import { element, facts, show } from "./answers.js";

const find = (id) => document.getElementById(id);

// What each task asks for: fields of the form, and the body that they make. `many` is a text a line.
const text = { name: "text", label: "Text", lines: 5 };
const TASKS = {
  "text-classification": {
    fields: [text], body: ({ text }) => ({ inputs: text, parameters: { top_k: 8 } }),
    examples: [
      { text: "Alle Menschen sind frei und gleich an Würde und Rechten geboren." },
      { text: "يولد جميع الناس أحراراً متساوين في الكرامة والحقوق." },
      { text: "すべての人間は、生れながらにして自由であり、かつ、尊厳と権利とについて平等である。" },
    ],
  },
  "token-classification": {
    fields: [text], body: ({ text }) => ({ inputs: text, parameters: { aggregation_strategy: "simple" } }),
    examples: [
      { text: "The General Assembly of the United Nations proclaimed it in Paris on 10 December 1948." },
      { text: "Everyone, каждый человек, 人人, 모든 사람, has the right to life." },
      { text: "قابل أحمد صديقته ليلى في القاهرة يوم الأحد، ثم سافرا إلى باريس." },
    ],
  },
  "fill-mask": {
    fields: [{ ...text, note: "with <mask> where a word is missing" }],
    body: ({ text }) => ({ inputs: text, parameters: { top_k: 5 } }),
    examples: [{ text: "All human beings are born <mask> and equal in dignity and <mask>." },
      { text: "Tous les êtres humains naissent <mask> et égaux en dignité." }],
  },
  "question-answering": {
    fields: [{ name: "question", label: "Question", lines: 1 }, { name: "context", label: "Context", lines: 6 }],
    body: ({ question, context }) => ({ inputs: { question, context }, parameters: { top_k: 3 } }),
    examples: [
      { question: "Where was it proclaimed?",
        context: "The Universal Declaration of Human Rights was proclaimed by the General Assembly in Paris on 10 December 1948." },
    ],
  },
  "zero-shot-classification": {
    fields: [text, { name: "labels", label: "Labels", lines: 3, many: true, note: "one a line" },
      { name: "several", label: "Several may be right", check: true }],
    body: ({ text, labels, several }) =>
      ({ inputs: text, parameters: { candidate_labels: labels, multi_label: several } }),
    examples: [{ text: "Everyone has the right to education.", labels: "school\nfood\nsport" }],
  },
  "multiple-choice": {
    fields: [text, { name: "choices", label: "Choices", lines: 4, many: true, note: "one a line" }],
    body: ({ text, choices }) => ({ inputs: { text, choices } }),
    examples: [{ text: "Everyone has the right to life,", choices: "liberty and security of person.\na bicycle in the garden.\nthe first of May." }],
  },
  rerank: {
    fields: [{ name: "query", label: "Query", lines: 2 },
      { name: "documents", label: "Documents", lines: 5, many: true, note: "one a line" }],
    body: ({ query, documents }) => ({ inputs: { query, documents } }), several: true,
    examples: [{ query: "Everyone has the right to rest and leisure.",
      documents: "Jeder hat das Recht auf Erholung und Freizeit.\nNadie será sometido a esclavitud.\nToute personne a droit à une nationalité." }],
  },
  "sentence-similarity": {
    fields: [{ name: "source", label: "Sentence", lines: 2 },
      { name: "sentences", label: "Others", lines: 5, many: true, note: "one a line" }],
    body: ({ source, sentences }) =>
      ({ inputs: { source_sentence: source, sentences }, parameters: { truncate: true } }),
    several: true,
    examples: [{ source: "Everyone has the right to education.",
      sentences: "Jeder hat das Recht auf Bildung.\nTodo indivíduo tem direito à vida.\n人人都有受教育的权利。" }],
  },
  embedding: {
    fields: [{ name: "texts", label: "Texts", lines: 6, many: true, note: "one a line" }],
    body: ({ texts }) => ({ inputs: texts, normalize: true, truncate: true }), several: true,
    examples: [{ texts: "Everyone has the right to education.\nJeder hat das Recht auf Bildung.\nكل شخص الحق في التعليم.\nNo one shall be held in slavery.\nНикто не должен содержаться в рабстве." }],
  },
  "feature-extraction": {
    fields: [text], body: ({ text }) => ({ inputs: text, parameters: {}, truncate: true }),
    examples: [{ text: "All human beings are born free." }],
  },
  "text-generation": {
    fields: [text, { name: "length", label: "New tokens", line: true, value: "40" }],
    body: ({ text, length }) => ({ inputs: text, parameters: { max_new_tokens: Number(length) } }),
    examples: [{ text: "Everyone has the right" }],
  },
  perplexity: { fields: [text], body: ({ text }) => ({ inputs: text }), examples: [{ text: "Everyone has the right to life." }] },
};
TASKS["pseudo-perplexity"] = TASKS.perplexity;

// Of a task that is not named above: a field a role, as `/info` has them.
const KINDS = {
  text: { lines: 4, example: "Everyone has the right to education.", read: (value) => value },
  texts: { lines: 4, note: "one a line", example: "school\nfood", read: lines },
  spans: { lines: 2, note: "as JSON: [[start, end], …]", example: "[[0, 8]]", read: json },
};

function formOf(card) {
  if (card.task in TASKS) return TASKS[card.task];
  const roles = Object.entries(card.roles);
  return {
    fields: roles.map(([name, kind]) => ({ name, label: name.replaceAll("_", " "), ...KINDS[kind] })),
    body: (inputs) => ({ inputs }),
    examples: [Object.fromEntries(roles.map(([name, kind]) => [name, KINDS[kind].example]))],
  };
}

// What is not JSON goes as it is: the service says what is wrong.
function json(value) {
  try {
    return JSON.parse(value);
  } catch {
    return value;
  }
}

function lines(value) {
  return value.split("\n").map((line) => line.trim()).filter(Boolean);
}

const state = { cards: [], task: null, form: null };

function headers() {
  const key = find("key").value;
  return { "content-type": "application/json", ...(key ? { authorization: `Bearer ${key}` } : {}) };
}

async function ask(path, options = {}) {
  const answer = await fetch(path, { ...options, headers: headers() });
  const said = await answer.json().catch(() => ({ error: `HTTP ${answer.status} without JSON` }));
  if (answer.status === 401) find("keyrow").hidden = false;
  if (!answer.ok) {
    const error = typeof said.error === "object" ? said.error.message : said.error ?? said.message;
    throw Object.assign(new Error(`${answer.status}: ${error}`), { said });
  }
  return [said, answer.headers];
}

async function load() {
  try {
    const [info] = await ask("info");
    state.cards = info.tasks;
    const models = new Set(info.tasks.map((card) => card.model)).size;
    find("about").textContent = `${state.cards.length} tasks of ${models} ${models === 1 ? "model" : "models"}, ` +
      `version ${info.version}; texts of up to ${info.max_input_length} tokens`;
  } catch (error) {
    find("about").textContent = `The service says ${error.message}`;
    return;
  }
  const chosen = decodeURIComponent(location.hash.slice(1));
  find("task").replaceChildren(...state.cards.map((card, place) => {
    const several = state.cards.filter((other) => other.task === card.task).length > 1;
    return element("option", { value: String(place) }, several ? `${card.task} (${card.model})` : card.task);
  }));
  const wanted = state.cards.findIndex((card) => chosen === card.task || chosen === `${card.task}@${card.model}`);
  find("task").value = String(Math.max(0, wanted));
  choose();
}

function choose() {
  state.task = state.cards[Number(find("task").value)];
  const task = state.form = formOf(state.task);
  find("fields").replaceChildren(...task.fields.map((field) => {
    const id = `field-${field.name}`;
    if (field.check) {
      return element("div", { class: "field check" },
        element("label", {}, element("input", { type: "checkbox", id }), ` ${field.label}`));
    }
    const input = field.line ? element("input", { type: "text", inputmode: "numeric", id, value: field.value })
      : element("textarea", { id, dir: "auto", rows: String(field.lines), spellcheck: "false", required: "" });
    const row = element("div", { class: "field" }, element("label", { for: id }, field.label), input);
    if (field.note) {
      input.setAttribute("aria-describedby", `${id}-note`);
      row.append(element("span", { class: "note", id: `${id}-note` }, field.note));
    }
    return row;
  }));
  find("example").replaceChildren(...task.examples.map((_, place) =>
    element("option", { value: String(place) }, String(place + 1))));
  fill();
}

function fill() {
  const example = state.form.examples[Number(find("example").value)];
  for (const [name, value] of Object.entries(example)) find(`field-${name}`).value = value;
  request();
}

function given() {
  return Object.fromEntries(state.form.fields.map((field) => {
    const input = find(`field-${field.name}`);
    if (field.check) return [field.name, input.checked];
    if (field.many) return [field.name, lines(input.value)];
    return [field.name, field.read ? field.read(input.value) : input.value];
  }));
}

function request() {
  const path = `tasks/${state.task.task}?model=${encodeURIComponent(state.task.model)}`;
  const body = JSON.stringify(state.form.body(given()));
  const url = new URL(path, document.baseURI).href;
  const key = find("key").value ? " -H 'Authorization: Bearer YOUR_KEY'" : "";
  find("curl").textContent =
    `curl '${url}' -H 'Content-Type: application/json'${key} -d '${body.replaceAll("'", String.raw`'\''`)}'`;
  return [path, body];
}

// `x-truncated` has the positions of the texts that were cut, from 0.
function cut(positions, form) {
  if (!positions) return "";
  const numbers = positions.split(",").map((position) => Number(position) + 1);
  const which = !form.several ? "the text was" : numbers.length > 1 ? `texts ${numbers.join(", ")} were`
    : `text ${numbers[0]} was`;
  return `; ${which} cut to the model's length`;
}

async function submit(event) {
  event?.preventDefault();
  if (!state.task) {
    await load();
    return;
  }
  const asked = given();
  const [path, body] = request();
  const { task: { task }, form } = state;
  find("go").disabled = true;
  find("status").textContent = "Computing…";
  try {
    const began = performance.now();
    const [answer, headers_] = await ask(path, { method: "POST", body });
    const took = performance.now() - began;
    const tokens = headers_.get("x-compute-tokens");
    find("result").replaceChildren(...(show[task] ?? facts)(answer, asked));
    find("json").textContent = JSON.stringify(answer, null, 1);
    find("status").textContent = `${took.toFixed(0)} ms${tokens ? `, ${tokens} tokens` : ""}` +
      cut(headers_.get("x-truncated"), form);
  } catch (error) {
    find("result").replaceChildren(element("p", { class: "error", role: "alert" }, error.message));
    find("json").textContent = error.said ? JSON.stringify(error.said, null, 1) : "";
    find("status").textContent = "";
  } finally {
    find("go").disabled = false;
  }
}

find("form").addEventListener("submit", submit);
find("form").addEventListener("input", () => state.task && request());
find("form").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) submit(event);
});
find("task").addEventListener("change", () => {
  choose();
  history.replaceState(null, "", `#${state.task.task}@${encodeURIComponent(state.task.model)}`);
  find("result").replaceChildren();
  find("status").textContent = "";
});
find("example").addEventListener("change", fill);
find("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(find("curl").textContent);
    find("copied").textContent = "Copied.";
  } catch {
    getSelection().selectAllChildren(find("curl"));
    find("copied").textContent = "Marked: copy it with Ctrl C.";
  }
});
load();
