// The list of sessions. It keeps itself up to date: every few seconds the list is fetched again, whole, as HTML, but
// never while something is open or being typed. And each card's menu: rename, archive, delete.

import { post } from "./outbox.js";

const EVERY_MS = 3000;
const TOAST_MS = 6000;
const LONG_TOAST_MS = 20000; // a path takes longer to read, and to copy
const IN_USE = ".more[open], .rename, dialog[open], #sessions :active";

const $ = (id) => document.getElementById(id);
const dialog = $("delete");
let doomed = null; // the card whose deletion is asked about
let toastTimer = null;

// ------------------------------------------------------------------ up to date

async function refresh() {
  if (!document.hidden) await look();
  setTimeout(refresh, EVERY_MS);
}

async function look() {
  try {
    const answer = await fetch("/", { headers: { Accept: "text/html" } });
    if (answer.ok) swap(new DOMParser().parseFromString(await answer.text(), "text/html"));
  } catch {
    // the server is gone for now: the next turn asks again
  }
}

function swap(fresh) {
  const old = $("sessions");
  const now = fresh.getElementById("sessions");
  if (!now || document.querySelector(IN_USE) || document.activeElement?.matches("input, textarea")) return;
  if ($("archive")?.open) now.querySelector("#archive")?.setAttribute("open", "");
  if (old.innerHTML === now.innerHTML) return;
  const focused = document.activeElement?.id;
  document.adoptNode(now);
  for (const image of now.querySelectorAll("img")) { // a picture that is there already does not flicker
    const same = old.querySelector(`img[src="${CSS.escape(image.getAttribute("src"))}"]`);
    if (same) image.replaceWith(same);
  }
  old.replaceWith(now);
  if (focused) $(focused)?.focus();
}

/** Shows what the server says now, and goes on with the keyboard at the first of these that is there. */
async function settle(...ids) {
  await look();
  ids.map($).find((element) => element?.checkVisibility())?.focus();
}

// ------------------------------------------------------------------ what the menus do

function rename(card) {
  const form = $("rename-form").content.firstElementChild.cloneNode(true);
  const input = form.querySelector("input");
  const heading = card.querySelector("h2");
  const { session, title } = card.dataset;
  const close = () => {
    form.remove();
    heading.hidden = false;
    $(`more-${session}`).focus();
  };
  input.value = title || session;
  input.placeholder = session;
  heading.hidden = true;
  heading.before(form);
  input.focus();
  input.select();
  form.querySelector("[type=button]").addEventListener("click", close);
  form.addEventListener("keydown", (event) => event.key === "Escape" && close());
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const text = input.value.trim() === session ? "" : input.value;
    if (!(await tell(session, "title", { text }))) return;
    close();
    await settle(`open-${session}`);
  });
}

async function archive(card) {
  const { session, title } = card.dataset;
  const archived = card.dataset.archived !== "true";
  if (!(await tell(session, "archive", { archived }))) return;
  toast(archived ? `“${title || session}” is in the archive, at the end of the list.` : `“${title || session}” is back in the list.`);
  await settle(`more-${session}`, "archive-summary");
}

function ask(card) {
  doomed = card;
  $("delete-title").textContent = `Delete “${card.dataset.title || card.dataset.session}”?`;
  dialog.showModal();
}

async function remove() {
  const { session, title } = doomed.dataset;
  dialog.close();
  const answer = await tell(session, "delete", {});
  if (!answer) return;
  toast(`“${title || session}” now lies in ${answer.moved_to}. Move the folder back to restore it.`, LONG_TOAST_MS);
  const next = doomed.nextElementSibling ?? doomed.previousElementSibling;
  await settle(`more-${next?.dataset.session}`, "archive-summary");
}

/** The answer; null where there was none to use, after saying why. */
async function tell(session, what, body) {
  const { status, answer } = await post(`/api/s/${session}/${what}`, body);
  if (status >= 200 && status < 300) return answer;
  toast(answer?.detail ?? "The server did not answer: try again.");
  return null;
}

function toast(text, ms = TOAST_MS) {
  $("toast").textContent = text;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => ($("toast").textContent = ""), ms);
}

// ------------------------------------------------------------------ clicks and keys

const ACTIONS = { rename, archive, delete: ask };

document.addEventListener("click", (event) => {
  for (const menu of document.querySelectorAll(".more[open]")) {
    if (!menu.contains(event.target)) menu.open = false;
  }
  const button = event.target.closest("[data-do]");
  if (!button) return;
  button.closest(".more").open = false;
  ACTIONS[button.dataset.do](button.closest(".card"));
});
document.addEventListener("keydown", (event) => {
  const menu = document.querySelector(".more[open]");
  if (event.key !== "Escape" || !menu) return;
  menu.open = false;
  menu.querySelector("summary").focus();
});
document.addEventListener("focusout", (event) => {
  const menu = event.target.closest(".more[open]");
  if (menu && event.relatedTarget && !menu.contains(event.relatedTarget)) menu.open = false;
});
document.addEventListener("error", (event) => event.target.matches("img") && event.target.remove(), true);
dialog.addEventListener("click", (event) => {
  if (event.target === dialog || event.target.matches(".keep")) dialog.close(); // beside the dialog, too
  if (event.target.matches(".danger")) remove();
});
dialog.addEventListener("close", () => $(`more-${doomed.dataset.session}`)?.focus());

setTimeout(refresh, EVERY_MS);
