// What the pages cannot do without a script. htmx does the rest.
(function () {
  "use strict";
  var detail = document.getElementById("detail");
  var pause = document.getElementById("pause");
  var state = document.getElementById("state");
  var paused = false;

  // A stream that begins anew tells of questions that the page has already.
  function once() {
    var there = {};
    document.querySelectorAll("#questions > article").forEach(function (card) {
      if (there[card.id]) card.remove();
      there[card.id] = true;
    });
  }

  // What came of one's own answer stays as it was said.
  document.body.addEventListener("htmx:oobBeforeSwap", function (event) {
    if (event.detail.target.classList.contains("over")) event.detail.shouldSwap = false;
  });

  // A live table keeps so many rows and no more.
  function trim() {
    document.querySelectorAll("[data-max]").forEach(function (body) {
      for (var over = body.rows.length - Number(body.dataset.max); over > 0; over--) {
        body.lastElementChild.remove();
      }
    });
  }

  function say(text) {
    if (!state) return;
    state.textContent = text;
    state.dataset.state = text;
  }

  document.body.addEventListener("htmx:sseOpen", function () { if (!paused) say("live"); });
  document.body.addEventListener("htmx:sseError", function () {
    say("reconnecting");
    // Who is not logged in any more is sent to the login by any page.
    htmx.ajax("GET", "/overview", {swap: "none"});
  });
  document.body.addEventListener("htmx:sseMessage", trim);
  document.body.addEventListener("htmx:sseMessage", once);
  document.body.addEventListener("htmx:sseMessage", function (event) {
    if (event.detail.type === "questions") htmx.trigger("#asked", "asked");
  });
  document.body.addEventListener("htmx:sseBeforeMessage", function (event) {
    // While a row is being read nothing moves.
    if (paused) event.preventDefault();
  });
  if (pause) {
    pause.addEventListener("click", function () {
      // What happened meanwhile is on the page when it is loaded again.
      if (paused) return location.reload();
      paused = true;
      pause.textContent = "Go on";
      say("paused");
    });
  }

  // An event opens in front of the list it was chosen from.
  document.body.addEventListener("htmx:afterSwap", function (event) {
    if (event.target.id === "detail-body" && !detail.open) detail.showModal();
  });
  if (detail) {
    detail.addEventListener("click", function (event) { if (event.target === detail) detail.close(); });
  }
  document.body.addEventListener("click", function (event) {
    var row = event.target.closest("tr.event");
    if (row && !event.target.closest("a, button") && !String(getSelection())) row.querySelector("a").click();
  });

  // The time that is left to answer, by this browser's clock.
  function count() {
    document.querySelectorAll("[data-left]").forEach(function (left) {
      if (!left.end) left.end = Date.now() + 1000 * Number(left.dataset.left);
      var seconds = Math.max(0, Math.round((left.end - Date.now()) / 1000));
      left.textContent = seconds + " s";
      var card = left.closest(".question");
      card.querySelector("progress").value = seconds;
      card.classList.toggle("soon", seconds <= 10);
    });
  }
  if (document.getElementById("questions")) setInterval(count, 500);

  // How many questions are open is seen on the tab as well.
  var title = document.title;
  document.body.addEventListener("htmx:afterSettle", function () {
    var asked = document.getElementById("asked");
    var n = asked ? parseInt(asked.textContent, 10) : 0;
    document.title = n ? "(" + n + ") " + title : title;
  });

  document.body.addEventListener("submit", function (event) {
    var question = event.target.dataset.confirm;
    if (question && !confirm(question)) event.preventDefault();
  });
})();
