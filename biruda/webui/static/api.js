// The public API from a page.

/** A problem document of the API: message is its sentence, with what to do. */
export class Problem extends Error {
  constructor(status, document) {
    super(document.detail + (document.hint ? ` (${document.hint})` : ""));
    this.status = status;
    this.document = document;
  }
}

/** What the API answers to a path below /api/v1, as a value. Raises Problem. */
export async function api(method, path, body, options = {}) {
  const headers = { ...options.headers };
  if (method !== "GET") headers["Biruda-Page"] = "1"; // no other site can send this along
  if (body !== undefined && !(body instanceof Blob)) {
    headers["Content-Type"] = "application/json";
    body = JSON.stringify(body);
  }
  let answer;
  try {
    answer = await fetch(`/api/v1${path}`, { method, headers, body, signal: options.signal, credentials: "same-origin" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, { detail: "the master cannot be reached", hint: "it is tried again by itself" });
  }
  if (answer.status === 401) location.assign(`/login?next=${encodeURIComponent(location.pathname + location.search)}`);
  if (!answer.ok) {
    let problem = { detail: `${method} ${path}: ${answer.status}` };
    try {
      problem = await answer.json();
    } catch { /* no document: the number must do */ }
    throw new Problem(answer.status, problem);
  }
  return options.raw ? answer : answer.json();
}

export const get = (path, options) => api("GET", path, undefined, options);
export const post = (path, body = {}) => api("POST", path, body);
