// The page is one more client of the endpoint: it asks, and shows what the stream tells.

const $ = (id) => document.getElementById(id);
const pictures = [];
let model = null;
let asking = null;

const headers = () => {
  const key = $("key").value.trim();
  return { "content-type": "application/json", ...(key && { authorization: `Bearer ${key}` }) };
};

async function complaint(response) {
  if (response.status === 401) {
    $("key-field").hidden = false;
    $("key").focus();
  }
  const body = await response.json().catch(() => null);
  return new Error(body?.error?.message ?? `the endpoint answers ${response.status}`);
}

async function findModel() {
  const response = await fetch("openai/v1/models", { headers: headers() });
  if (!response.ok) throw await complaint(response);
  model = (await response.json()).data[0].id;
  $("model").textContent = model;
}

// Pictures

function addPictures(files) {
  for (const file of files) {
    if (!file.type.startsWith("image/")) continue;
    const reader = new FileReader();
    reader.onload = () => {
      pictures.push({ name: file.name || "picture", url: reader.result });
      showPictures();
    };
    reader.readAsDataURL(file);
  }
}

function showPictures() {
  $("pictures").replaceChildren(...pictures.map((picture, index) => {
    const image = Object.assign(document.createElement("img"), { src: picture.url, alt: picture.name });
    const remove = Object.assign(document.createElement("button"), { type: "button", textContent: "×" });
    remove.setAttribute("aria-label", `Remove ${picture.name}`);
    remove.onclick = () => {
      pictures.splice(index, 1);
      showPictures();
      $("file").focus();
    };
    const item = document.createElement("li");
    item.append(image, remove);
    return item;
  }));
}

// The reply

const seconds = (value) => `${value < 10 ? value.toFixed(2) : value.toFixed(1)} s`;

function inBrief(args) {
  const values = Object.values(args ?? {});
  return values.length === 1 ? String(values[0]) : JSON.stringify(args ?? {});
}

function callEntry({ name, arguments: args }) {
  const item = document.createElement("li");
  item.innerHTML =
    "<details><summary><code></code><span class=what></span><time>…</time></summary><pre></pre></details>";
  item.querySelector("code").textContent = name || "malformed call";
  item.querySelector(".what").textContent = inBrief(args);
  item.querySelector("pre").textContent = inBrief(args);
  return item;
}

function endCall(item, call) {
  item.classList.toggle("error", call.is_error);
  item.querySelector("time").textContent = seconds(call.seconds);
  const result = document.createElement("pre");
  const shown = call.images ? `[${call.images} image${call.images > 1 ? "s" : ""}] ` : "";
  result.textContent = shown + call.result;
  item.querySelector("details").append(result);
}

function showFacts(facts) {
  $("facts").replaceChildren(...Object.entries(facts).map(([name, value]) => {
    const pair = document.createElement("div");
    pair.append(
      Object.assign(document.createElement("dt"), { textContent: name }),
      Object.assign(document.createElement("dd"), { textContent: value }),
    );
    return pair;
  }));
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    held += value;
    const parts = held.split("\n\n");
    held = parts.pop();
    for (const part of parts) {
      if (part.startsWith("data: ") && part !== "data: [DONE]") yield JSON.parse(part.slice(6));
    }
  }
}

async function ask() {
  if (asking || !$("question").reportValidity()) return;
  asking = new AbortController();
  const started = performance.now();
  const waiting = [];
  let done = null;
  let usage = null;
  $("reply").hidden = false;
  $("reply").classList.add("busy");
  $("send").disabled = true;
  $("stop").hidden = false;
  $("error").hidden = true;
  $("answer").textContent = "";
  $("calls").replaceChildren();
  const clock = setInterval(() => showFacts({ Time: seconds((performance.now() - started) / 1e3) }), 100);
  try {
    if (!model) await findModel();
    const content = pictures.map(({ url }) => ({ type: "image_url", image_url: { url } }));
    content.push({ type: "text", text: $("question").value });
    const response = await fetch("openai/v1/chat/completions", {
      method: "POST",
      headers: headers(),
      signal: asking.signal,
      body: JSON.stringify({
        model,
        messages: [{ role: "user", content }],
        tool_choice: $("tools").checked ? "auto" : "none",
        stream: true,
        stream_options: { include_usage: true },
      }),
    });
    if (!response.ok) throw await complaint(response);
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      $("answer").textContent += event.choices[0]?.delta.content ?? "";
      if (event.toolwise?.calling) {
        waiting.push(callEntry(event.toolwise.calling));
        $("calls").append(waiting.at(-1));
      } else if (event.toolwise?.call) {
        endCall(waiting.shift(), event.toolwise.call);
      } else if (event.toolwise) done = event.toolwise;
      usage = event.usage ?? usage;
    }
    if (!$("answer").textContent) $("answer").textContent = "(no answer)";
  } catch (error) {
    $("error").textContent = error.name === "AbortError" ? "Stopped." : error.message;
    $("error").hidden = false;
  } finally {
    clearInterval(clock);
    const facts = { Time: seconds((performance.now() - started) / 1e3) };
    if (done) {
      facts.Tools = done.tool_calls ? `${done.tool_calls} called` : done.abstained ? "none needed" : "off";
      if (done.tool_calls) facts["In tools"] = seconds(done.tool_seconds);
    }
    if (usage) facts.Tokens = `${usage.prompt_tokens} read, ${usage.completion_tokens} written`;
    showFacts(facts);
    $("reply").classList.remove("busy");
    $("send").disabled = false;
    $("stop").hidden = true;
    asking = null;
  }
}

$("ask").onsubmit = (event) => { event.preventDefault(); ask(); };
$("stop").onclick = () => asking?.abort();
$("file").onchange = () => { addPictures($("file").files); $("file").value = ""; };
$("question").onkeydown = (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); ask(); }
};
document.onkeydown = (event) => { if (event.key === "Escape") asking?.abort(); };
document.onpaste = (event) => addPictures(event.clipboardData.files);
for (const kind of ["dragenter", "dragover"]) {
  document.addEventListener(kind, (event) => { event.preventDefault(); $("drop").classList.add("over"); });
}
for (const kind of ["dragleave", "drop"]) {
  document.addEventListener(kind, (event) => { event.preventDefault(); $("drop").classList.remove("over"); });
}
document.addEventListener("drop", (event) => addPictures(event.dataTransfer.files));
findModel().catch((error) => {
  if (!$("key-field").hidden) return;
  $("reply").hidden = false;
  $("error").textContent = error.message;
  $("error").hidden = false;
});
